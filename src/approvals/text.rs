//! Text of strangers on a page: never markup, never unseen, never turning its neighbours around. Pure.
//!
//! Neighbours: [`super::letter`] writes pages with it.

use std::fmt::Write as _;
use std::time::Duration;

use crate::ask::text::is_harmless;

/// As text and as the value of an attribute. What is not seen or turns the order of characters around is written out, but
/// for line ends, tabs, and the joiners that Persian, Indic scripts and emoji are written with.
pub fn html(text: &str) -> String {
    let mut safe = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' | '\u{200c}' | '\u{200d}' => safe.push(c),
            c if is_harmless(c) => safe.push(c),
            // Writing to a string cannot fail.
            c => {
                let _ = write!(safe, "\\u{{{:x}}}", u32::from(c));
            }
        }
    }
    safe
}

/// How long, in the two largest units.
pub fn length(time: Duration) -> String {
    let secs = time.as_secs();
    let of = |count: u64, unit: &str| match count {
        1 => format!("1 {unit}"),
        count => format!("{count} {unit}s"),
    };
    let two = |(large, unit): (u64, &str), (small, smaller): (u64, &str)| match small {
        0 => of(large, unit),
        small => format!("{} {}", of(large, unit), of(small, smaller)),
    };
    match secs {
        0..60 => of(secs, "second"),
        60..3_600 => two((secs / 60, "minute"), (secs % 60, "second")),
        3_600..86_400 => two((secs / 3_600, "hour"), (secs % 3_600 / 60, "minute")),
        _ => two((secs / 86_400, "day"), (secs % 86_400 / 3_600, "hour")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_is_never_markup_and_never_turned_around() {
        assert_eq!(
            html("<b a=\"x\" b='y'>&amp;\u{202e}\r\u{0}\u{1b}\n\tü"),
            "&lt;b a=&quot;x&quot; b=&#39;y&#39;&gt;&amp;amp;\\u{202e}\\u{d}\\u{0}\\u{1b}\n\tü"
        );
        let family = "\u{1f468}\u{200d}\u{1f469}";
        assert_eq!(html(family), family);
    }

    #[test]
    fn a_length_is_said_in_its_two_largest_units() {
        for (secs, said) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (60, "1 minute"),
            (61, "1 minute 1 second"),
            (7_260, "2 hours 1 minute"),
            (86_400, "1 day"),
            (90_000, "1 day 1 hour"),
        ] {
            assert_eq!(length(Duration::from_secs(secs)), said);
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_in_nothing_comes_out_that_opens_or_ends_markup(text: String) {
            let safe = html(&text);
            let opens = safe.contains(['<', '>', '"', '\'', '\u{202e}', '\u{2066}']);
            prop_assert!(!opens);
            let back = safe.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'");
            let back = back.replace("&amp;", "&");
            let harmless = |c: char| is_harmless(c) || matches!(c, '\n' | '\t' | '\u{200c}' | '\u{200d}');
            if text.chars().all(harmless) {
                prop_assert_eq!(back, text);
            }
        }
    }
}
