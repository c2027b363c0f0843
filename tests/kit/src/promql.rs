//! Reads which metrics and labels an expression of PromQL names, and which a scrape shows.
//!
//! Neighbours: the tests of dashboards and alerts compare the two. Whether an expression is valid is not judged here: a real
//! Prometheus does.

use std::collections::{BTreeMap, BTreeSet};

/// Suffixes of the series of a histogram.
const PARTS: [&str; 3] = ["_bucket", "_sum", "_count"];
/// Words whose list in parentheses names labels.
const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that are neither metrics, nor functions, nor followed by labels.
const WORDS: [&str; 8] = ["and", "or", "unless", "bool", "offset", "atan2", "inf", "nan"];

/// What an expression names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Metrics, as they are named.
    pub metrics: BTreeSet<String>,
    /// Labels, of selectors and of lists.
    pub labels: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// Numbers, durations and strings.
    Value,
    Sign(char),
}

/// What `expression` names. Variables must have been filled in.
pub fn named(expression: &str) -> Named {
    let tokens = tokens(expression);
    let mut named = Named::default();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let next = tokens.get(at + 1);
        at += 1;
        let end = match (token, next) {
            (Token::Sign('{'), _) => '}',
            (Token::Word(word), Some(Token::Sign('('))) if LISTS.contains(&word.as_str()) => ')',
            (Token::Word(word), next) => {
                let is_function = next == Some(&Token::Sign('('));
                // `sum by (a) (x)`: an aggregation whose list comes first.
                let is_aggregation =
                    matches!(next, Some(Token::Word(next)) if ["by", "without"].contains(&next.as_str()));
                let is_word =
                    WORDS.contains(&word.to_ascii_lowercase().as_str()) || LISTS.contains(&word.as_str());
                if !is_function && !is_aggregation && !is_word {
                    named.metrics.insert(word.clone());
                }
                continue;
            }
            _ => continue,
        };
        while let Some(token) = tokens.get(at).filter(|token| **token != Token::Sign(end)) {
            if let Token::Word(label) = token {
                named.labels.insert(label.clone());
            }
            at += 1;
        }
    }
    named
}

fn tokens(expression: &str) -> Vec<Token> {
    let mut rest = expression;
    let mut tokens = Vec::new();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' | '\'' | '`' => string_length(rest, first),
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '0'..='9' | '.' => span(rest, |c| c.is_ascii_alphanumeric() || c == '.'),
            'a'..='z' | 'A'..='Z' | '_' | ':' => {
                span(rest, |c| c.is_ascii_alphanumeric() || "_:".contains(c))
            }
            _ => first.len_utf8(),
        };
        let (text, after) = rest.split_at(length);
        rest = after;
        match first {
            '#' => {}
            '"' | '\'' | '`' | '0'..='9' | '.' => tokens.push(Token::Value),
            'a'..='z' | 'A'..='Z' | '_' | ':' => tokens.push(Token::Word(text.to_owned())),
            _ if first.is_whitespace() => {}
            // `[5m]`, `[5m:1m]`: nothing in there is a name.
            '[' => rest = rest.split_once(']').map_or("", |(_, after)| after),
            _ => tokens.push(Token::Sign(first)),
        }
    }
    tokens
}

/// Length of what begins `text` and consists of such characters.
fn span(text: &str, of: impl Fn(char) -> bool) -> usize {
    text.find(|c| !of(c)).unwrap_or(text.len())
}

/// Length of the string that begins `text`, with its quotes.
fn string_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if !escaped && c == quote {
            return at + 1;
        }
        escaped = !escaped && c == '\\' && quote != '`';
    }
    text.len()
}

/// A family of a scrape.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// `counter`, `gauge`, `histogram`.
    pub kind: String,
    /// Every label that one of its series has, whatever its value.
    pub labels: BTreeSet<String>,
}

/// What a scrape in text form shows, by name of the family.
#[derive(Debug, Default)]
pub struct Scrape(pub BTreeMap<String, Family>);

impl Scrape {
    /// Reads it. Lines that are none of the text form are passed over: a real Prometheus judges those.
    pub fn read(text: &str) -> Self {
        let mut scrape = Self::default();
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                kind.clone_into(&mut scrape.0.entry(name.to_owned()).or_default().kind);
                continue;
            }
            let end = span(line, |c| c.is_ascii_alphanumeric() || "_:".contains(c));
            let (series, rest) = line.split_at(end);
            let name = scrape.family_of(series).map(str::to_owned);
            if let Some(family) = name.and_then(|name| scrape.0.get_mut(&name)) {
                family.labels.extend(named(rest).labels);
            }
        }
        scrape
    }

    /// The family that a name in an expression belongs to.
    pub fn family_of<'a>(&self, series: &'a str) -> Option<&'a str> {
        if self.0.contains_key(series) {
            return Some(series);
        }
        let of_histogram = |part: &&str| series.strip_suffix(*part);
        let family = PARTS.iter().find_map(of_histogram)?;
        let is_histogram = self
            .0
            .get(family)
            .is_some_and(|family| family.kind == "histogram");
        is_histogram.then_some(family)
    }

    /// The family that a name in an expression belongs to.
    pub fn family(&self, series: &str) -> Option<&Family> {
        self.0.get(self.family_of(series)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names<const N: usize>(of: [&str; N]) -> BTreeSet<String> {
        of.map(str::to_owned).into()
    }

    #[test]
    fn metrics_and_labels_are_told_from_functions_words_and_strings() {
        let expression = r#"
            histogram_quantile(0.95, sum by (le, pool) (rate(a_seconds_bucket{x=~"y{z}\"b", w!=""}[5m:1m] offset 1e3)))
              / on (job) group_left (c) max(b) without (d) # comment { e }
              or vector(0) unless (f:g > bool 1.5e3) and absent(h) < Inf"#;
        assert_eq!(
            named(expression),
            Named {
                metrics: names(["a_seconds_bucket", "b", "f:g", "h"]),
                labels: names(["le", "pool", "x", "w", "job", "c", "d"]),
            }
        );
    }

    #[test]
    fn a_scrape_tells_families_types_and_labels_even_when_they_are_empty() {
        let text = "# HELP a_total b\n# TYPE a_total counter\na_total{tenant=\"\",x=\"{y=\\\"1\\\"}\"} 1\n\
                    # TYPE t_seconds histogram\nt_seconds_bucket{le=\"+Inf\"} 1\nt_seconds_sum 0\nt_seconds_count 1\n";
        let scrape = Scrape::read(text);
        let family = |name| scrape.family(name).expect("is there");
        assert_eq!(family("a_total").labels, names(["tenant", "x"]));
        assert_eq!(family("t_seconds_bucket").labels, names(["le"]));
        assert_eq!(family("t_seconds_count").kind, "histogram");
        assert!(scrape.family("a_total_bucket").is_none() && scrape.family("b").is_none());
    }
}
