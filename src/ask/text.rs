//! Text for a terminal: harmless, and within its columns. Pure.

use std::fmt::Write as _;

/// Columns of the narrowest terminal that is written for.
pub const COLUMNS: usize = 80;

/// Without what could steer a terminal or turn the order of characters around: such characters are written out.
pub fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmless(c) {
            clean.push(c);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(clean, "\\u{{{:x}}}", u32::from(c));
        }
    }
    clean
}

/// Whether it neither steers a terminal nor is unseen nor turns others around.
pub fn is_harmless(c: char) -> bool {
    let steers = c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !steers
}

/// JSON in which no character is left that could steer a terminal.
pub fn clean_json(json: &str) -> String {
    let mut clean = String::with_capacity(json.len());
    for c in json.chars() {
        // Line ends stand between values only; inside of strings they are escaped already.
        if is_harmless(c) || c == '\n' {
            clean.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(clean, "\\u{unit:04x}");
        }
    }
    clean
}

/// As much of it as fits so many columns, with a sign where something is missing. A character beyond ASCII may take two.
pub fn cut(text: &str, columns: usize) -> String {
    let width = |c: char| if c.is_ascii() { 1 } else { 2 };
    if text.chars().map(width).sum::<usize>() <= columns {
        return text.to_owned();
    }
    let mut taken = 0;
    let fits = |c: &char| {
        taken += width(*c);
        taken < columns
    };
    let mut cut: String = text.chars().take_while(fits).collect();
    cut.push('~');
    cut
}

/// Cut and filled up to so many columns.
pub fn column(text: &str, columns: usize) -> String {
    let cut = cut(text, columns);
    let width: usize = cut.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum();
    format!("{cut}{}", " ".repeat(columns.saturating_sub(width)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_is_left() {
        assert_eq!(
            clean("a\u{1b}[2Jb\r\nü\u{9b}\u{202e}"),
            "a\\u{1b}[2Jb\\u{d}\\u{a}ü\\u{9b}\\u{202e}"
        );
        let json = serde_json::json!({"id": "\u{9b}2J\u{202e}\u{e0041}ü\n"}).to_string();
        let clean = clean_json(&json);
        assert!(!clean.contains(['\u{9b}', '\u{202e}', '\u{e0041}']), "{clean}");
        let read: serde_json::Value = serde_json::from_str(&clean).expect("is still JSON");
        assert_eq!(read["id"], "\u{9b}2J\u{202e}\u{e0041}ü\n", "and says the same");
    }

    #[test]
    fn text_is_cut_to_its_columns() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab~");
        assert_eq!(cut("日本語", 4), "日~");
        assert_eq!(column("ab", 4), "ab  ");
        assert_eq!(column("日本語", 5), "日本~");
    }
}
