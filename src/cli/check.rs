//! `check log|health|text`: reads what a worker said and prints what is wrong with it, by line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{OutputFormat, print};
use crate::check::{self, LEAST_SECRET_BYTES, Secrets};
use crate::exit::Exit;

/// Most findings that are printed one by one; all are counted.
const MAX_SHOWN: usize = 50;
/// Longest line that is looked at, in bytes: a worker writes shorter ones.
const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

/// What is checked.
#[derive(Debug, Clone, Subcommand)]
pub enum CheckCommand {
    /// Check a log: the form of each line, ids beside steps, secrets
    Log(CheckedArgs),
    /// Check the body of a health page
    Health(CheckedArgs),
    /// Look for the given secrets in any text
    Text(CheckedArgs),
}

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckedArgs {
    /// File to check, or - for standard input
    pub file: PathBuf,
    /// Value that must be nowhere, in no form; repeatable
    #[arg(long = "secret", value_name = "VALUE")]
    pub secrets: Vec<String>,
    /// File with such values, one per line
    #[arg(long = "secrets", value_name = "FILE")]
    pub secrets_file: Option<PathBuf>,
}

/// What was found.
#[derive(Default)]
struct Findings {
    lines: usize,
    found: usize,
    shown: Vec<(usize, String)>,
}

impl Findings {
    fn add(&mut self, line: usize, found: Vec<String>) {
        self.lines = line;
        self.found += found.len();
        let room = MAX_SHOWN - self.shown.len();
        self.shown
            .extend(found.into_iter().take(room).map(|text| (line, text)));
    }
}

/// A log without lines says nothing: it was taken from the wrong place.
fn not_empty(mut findings: Findings) -> Findings {
    if findings.lines == 0 {
        findings.add(0, vec!["the log is empty: there is nothing to judge".to_owned()]);
    }
    findings
}

/// Checks, prints, and ends with 0 when nothing is wrong, else with 1.
pub(super) fn run(command: &CheckCommand, output: OutputFormat) -> Exit {
    let (CheckCommand::Log(args) | CheckCommand::Health(args) | CheckCommand::Text(args)) = command;
    let judged = secrets_of(args).and_then(|secrets| {
        let mut input = open(&args.file)?;
        match command {
            CheckCommand::Log(_) => by_line(&mut input, |text| check::line(text, &secrets)).map(not_empty),
            CheckCommand::Text(_) => by_line(&mut input, |text| check::leaks(text, &secrets)),
            CheckCommand::Health(_) => {
                let mut text = String::new();
                let limit = MAX_LINE_BYTES as u64;
                input
                    .take(limit)
                    .read_to_string(&mut text)
                    .map_err(|error| error.to_string())?;
                let mut findings = Findings::default();
                findings.add(1, check::health(&text, &secrets));
                Ok(findings)
            }
        }
    });
    match judged {
        Ok(findings) => tell(&findings, &args.file, output),
        Err(problem) => {
            match output {
                OutputFormat::Text => print::error(&problem),
                OutputFormat::Json => print::answer(&json!({"error": problem}).to_string()),
            }
            Exit::Usage
        }
    }
}

fn tell(findings: &Findings, file: &Path, output: OutputFormat) -> Exit {
    let Findings { lines, found, shown } = findings;
    let file = match file.to_str() {
        Some("-") | None => "standard input".to_owned(),
        Some(file) => file.to_owned(),
    };
    let text = match output {
        OutputFormat::Text => {
            let each = shown
                .iter()
                .map(|(line, text)| format!("[ERROR] {file}: line {line}: {text}\n"));
            let sum = match found {
                0 => format!("[OK] {file}: {lines} lines"),
                found => format!("[ERROR] {file}: {found} findings in {lines} lines"),
            };
            format!("{}{sum}", each.collect::<String>())
        }
        OutputFormat::Json => {
            let shown: Vec<_> = shown
                .iter()
                .map(|(line, text)| json!({"line": line, "finding": text}))
                .collect();
            json!({"file": file, "lines": lines, "findings": found, "shown": shown}).to_string()
        }
    };
    print::answer(&text);
    match found {
        0 => Exit::Ok,
        _ => Exit::SomeFailed,
    }
}

fn secrets_of(args: &CheckedArgs) -> Result<Secrets, String> {
    let mut values = args.secrets.clone();
    if let Some(file) = &args.secrets_file {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        values.extend(text.lines().filter(|line| !line.is_empty()).map(str::to_owned));
    }
    match values.iter().position(|value| value.len() < LEAST_SECRET_BYTES) {
        Some(at) => Err(format!(
            "secret number {} is shorter than {LEAST_SECRET_BYTES} bytes: it would be found everywhere",
            at + 1
        )),
        None => Ok(Secrets::new(values)),
    }
}

fn open(file: &Path) -> Result<Box<dyn BufRead>, String> {
    if file == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let opened = File::open(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(Box::new(BufReader::new(opened)))
}

fn by_line(input: &mut dyn BufRead, judge: impl Fn(&str) -> Vec<String>) -> Result<Findings, String> {
    let mut findings = Findings::default();
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let limit = MAX_LINE_BYTES as u64;
        let read = input.take(limit).read_until(b'\n', &mut bytes);
        if read.map_err(|error| error.to_string())? == 0 {
            break;
        }
        let found = match std::str::from_utf8(bytes.strip_suffix(b"\n").unwrap_or(&bytes)) {
            _ if bytes.len() == MAX_LINE_BYTES => vec![format!("is longer than {MAX_LINE_BYTES} bytes")],
            Ok(text) => judge(text),
            Err(_) => vec!["is not UTF-8".to_owned()],
        };
        findings.add(number, found);
    }
    Ok(findings)
}
