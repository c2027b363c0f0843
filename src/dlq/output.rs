//! Prints dead letters and what became of replays: for people, or as JSON lines.
//!
//! Neighbours: [`super`] calls it. Answers go to standard output, everything else to standard error. What tenants sent
//! cannot steer a terminal: control characters are printed as escapes.

use std::fmt::Display;

use caf_actors::nats::dead_letters::StoredLetter;
use caf_actors::nats::replays::Marker;
use caf_protocol::dead_letter::kept::KeptLetter;
use caf_protocol::timestamp::iso_micros;
use serde_json::{Value, json};

use super::plan::{Refused, Replay};
use super::select::{Row, Skipped};
use crate::cli::print;
use crate::submit::Show;

/// What became of one letter that was to be replayed.
#[derive(Debug)]
pub enum Fate {
    /// It was sent.
    Sent(Replay),
    /// The stream has this very replay already and dropped the second copy.
    SentBefore(Replay),
    /// It was sent, perhaps: nothing confirms that it arrived.
    Unconfirmed(Replay),
    /// It would be sent.
    Would(Replay),
    /// It was not sent.
    Refused(Refused),
}

/// One line about one letter.
#[derive(Debug)]
pub struct Report<'a> {
    /// Sequence in the stream of dead letters.
    pub sequence: u64,
    /// The assignment, when the letter names one.
    pub assignment_id: Option<&'a str>,
    /// What became of it.
    pub fate: &'a Fate,
}

impl Report<'_> {
    /// Prints the line.
    pub fn print(&self, show: Show) {
        print::answer(&match show {
            Show::Json => self.json().to_string(),
            Show::Text => self.text(),
        });
    }

    fn json(&self) -> Value {
        let mut line = json!({ "sequence": self.sequence });
        if let Some(id) = self.assignment_id {
            line["assignment_id"] = id.into();
        }
        let (word, replay) = match self.fate {
            Fate::Sent(replay) => ("replayed", replay),
            Fate::SentBefore(replay) => ("already_replayed", replay),
            Fate::Unconfirmed(replay) => ("unconfirmed", replay),
            Fate::Would(replay) => ("would_replay", replay),
            Fate::Refused(why) => {
                line["outcome"] = "refused".into();
                line["why"] = why.to_string().into();
                return line;
            }
        };
        line["outcome"] = word.into();
        line["replay"] = replay.number.into();
        if matches!(self.fate, Fate::Would(_)) {
            line["subject"] = replay.message.subject.as_str().into();
            line["headers"] = json!(replay.message.headers);
            line["payload"] = String::from_utf8_lossy(&replay.message.payload).into();
        }
        line
    }

    fn text(&self) -> String {
        let sequence = self.sequence;
        let id = printable(self.assignment_id.unwrap_or("-"));
        match self.fate {
            Fate::Sent(replay) => format!("{sequence}  {id}  replayed as replay {}", replay.number),
            Fate::SentBefore(replay) => {
                format!(
                    "{sequence}  {id}  already sent as replay {}, dropped",
                    replay.number
                )
            }
            Fate::Unconfirmed(replay) => {
                let number = replay.number;
                format!(
                    "{sequence}  {id}  replay {number} is not confirmed; a later run sends it again as replay {number}"
                )
            }
            Fate::Would(replay) => {
                let headers: Vec<_> = replay
                    .message
                    .headers
                    .iter()
                    .map(|(name, value)| format!("{name}: {value}"))
                    .collect();
                format!(
                    "{sequence}  {id}  would be sent on {} as replay {}\n    {}\n    {}",
                    replay.message.subject,
                    replay.number,
                    printable(&headers.join("; ")),
                    printable(&String::from_utf8_lossy(&replay.message.payload)),
                )
            }
            Fate::Refused(why) => format!("{sequence}  {id}  refused: {}", printable(&why.to_string())),
        }
    }
}

/// Prints a table, or one line each.
pub fn rows(rows: &[Row], show: Show) {
    print::answer(&match show {
        Show::Json => rows.iter().map(|row| format!("{}\n", json!(row))).collect(),
        Show::Text if rows.is_empty() => "no dead letters".to_owned(),
        Show::Text => table(rows),
    });
}

fn table(rows: &[Row]) -> String {
    let cell = |text: &Option<String>| printable(text.as_deref().unwrap_or("-"));
    let head = [
        "SEQ",
        "TIME",
        "TENANT",
        "ASSIGNMENT",
        "JOB",
        "REASON",
        "ERROR",
        "REPLAYS",
    ];
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        [
            row.sequence.to_string(),
            row.time.clone(),
            cell(&row.tenant_id),
            cell(&row.assignment_id),
            cell(&row.job_type),
            cell(&row.reason),
            cell(&row.error_code),
            row.replays.to_string(),
        ]
    }));
    let widths: [usize; 8] = std::array::from_fn(|column| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.max().unwrap_or(0)
    });
    let mut text = String::new();
    for line in lines {
        let mut padded = String::new();
        for (cell, width) in line.iter().zip(widths) {
            padded.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(padded.trim_end());
        text.push('\n');
    }
    text
}

/// Prints all of one letter.
pub fn letter(stored: &StoredLetter, marker: Option<&Marker>, show: Show) {
    let letter = KeptLetter::read(&stored.payload);
    let row = Row::read(stored, &letter, marker);
    let time = iso_micros(stored.stored_at);
    print::answer(&match show {
        Show::Json => {
            let mut line = json!({
                "sequence": stored.sequence, "time": time, "replays": row.replays, "letter": letter.value(),
            });
            if let Some(at) = row.replayed_at {
                line["replayed_at"] = at.into();
            }
            if let Some(replay) = row.unconfirmed_replay {
                line["unconfirmed_replay"] = replay.into();
            }
            if letter.value().is_null() {
                line["raw"] = String::from_utf8_lossy(&stored.payload).into();
            }
            line.to_string()
        }
        Show::Text => letter_text(stored, &letter, &time, &row),
    });
}

fn letter_text(stored: &StoredLetter, letter: &KeptLetter, time: &str, row: &Row) -> String {
    let mut text = format!("dead letter {} of {time}\n", stored.sequence);
    if let Some(at) = &row.replayed_at {
        text.push_str(&format!("replayed as replay {} at {at}\n", row.replays));
    }
    if let Some(replay) = row.unconfirmed_replay {
        text.push_str(&format!("replay {replay} was begun and never confirmed\n"));
    }
    let Some(fields) = letter.value().as_object() else {
        let raw = printable(&String::from_utf8_lossy(&stored.payload));
        return format!("{text}\nit is no letter of a worker:\n{raw}");
    };
    for (name, value) in fields.iter().filter(|(name, _)| *name != "original_payload") {
        let value = match value {
            Value::String(value) => printable(value),
            other => printable(&other.to_string()),
        };
        text.push_str(&format!("{name}: {value}\n"));
    }
    // Last, and on lines of its own: it may be long.
    if let Some(payload) = letter.text("original_payload") {
        text.push_str(&format!("original_payload:\n{}\n", printable(payload)));
    }
    text
}

/// What was not looked at when as many were sent as may be in one run.
#[derive(Debug, Clone, Copy)]
pub struct Left {
    /// So many letters.
    pub count: usize,
    /// They come after this sequence.
    pub after: u64,
    /// So many may be sent.
    pub max: usize,
}

/// Says what was left alone, and how to go on.
pub fn remainder(superseded: usize, skipped: Skipped, left: Option<Left>) {
    if superseded > 0 {
        complain(&format!(
            "{superseded} older letters of assignments that failed again since were left alone"
        ));
    }
    for (count, why) in [
        (
            skipped.replayed,
            "were replayed already, or are just now; --again sends them once more",
        ),
        (
            skipped.too_often,
            "were replayed as often as --max-replays allows",
        ),
        (
            skipped.never,
            "cannot be replayed; named by sequence, each tells why",
        ),
    ] {
        if count > 0 {
            complain(&format!("{count} skipped: they {why}"));
        }
    }
    if let Some(Left { count, after, max }) = left {
        complain(&format!(
            "{count} more match and were left: --max is {max}; go on with --after {after}"
        ));
    }
}

/// Prints to standard error.
pub fn complain(what: &(impl Display + ?Sized)) {
    print::error(&format!("caf-worker: {what}"));
}

/// Control characters but line feeds and tabs as escapes.
fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && !matches!(character, '\n' | '\t') {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn stored(payload: &str) -> StoredLetter {
        StoredLetter {
            sequence: 12,
            stored_at: UNIX_EPOCH,
            payload: payload.to_owned().into(),
        }
    }

    #[test]
    fn a_table_has_a_column_for_each_fact_and_a_dash_for_what_is_not_there() {
        let letter = stored(r#"{"tenant_id":"acme","assignment_id":"a-1","reason":"execution_failed"}"#);
        let known = Row::of(&letter, None);
        let lines: Vec<String> = table(&[known, Row::of(&stored("noise"), None)])
            .lines()
            .map(str::to_owned)
            .collect();
        assert_eq!(lines.len(), 3);
        let cells: Vec<_> = lines[1].split_whitespace().collect();
        assert_eq!(cells[2..], ["acme", "a-1", "-", "execution_failed", "-", "0"]);
        assert_eq!(lines[0].find("REASON"), lines[1].find("execution_failed"));
        assert_eq!(lines[2].split_whitespace().nth(2), Some("-"));
    }

    #[test]
    fn what_a_tenant_sent_does_not_steer_the_terminal() {
        let letter = stored("{\"original_payload\":\"a\\u001b[2Jb\\nc\",\"tenant_id\":\"\\u0007\"}");
        let text = letter_text(
            &letter,
            &KeptLetter::read(&letter.payload),
            "t",
            &Row::of(&letter, None),
        );
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
        assert!(text.contains("a\\u{1b}[2Jb\nc"), "{text}");
        assert!(
            letter_text(
                &stored("\u{1b}"),
                &KeptLetter::default(),
                "t",
                &Row::of(&stored(""), None)
            )
            .contains("\\u{1b}")
        );
    }

    #[test]
    fn a_refusal_is_a_line_with_its_reason() {
        let report = Report {
            sequence: 12,
            assignment_id: Some("a-1"),
            fate: &Fate::Refused(Refused::TooOften { replays: 3 }),
        };
        assert!(
            report
                .text()
                .starts_with("12  a-1  refused: it was replayed 3 times")
        );
        assert_eq!(report.json()["outcome"], "refused");
    }
}
