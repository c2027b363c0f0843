//! Prints answers and complaints of commands. A reader that has gone away (`| head`) is no error.

use std::io::{self, Write};

/// Prints an answer to standard output as it is, and the end of its last line if that is missing.
pub fn answer(text: &str) {
    write(&mut io::stdout().lock(), text);
}

/// Prints a complaint to standard error.
pub fn error(text: &str) {
    write(&mut io::stderr().lock(), text);
}

fn write(to: &mut impl Write, text: &str) {
    let end = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    // Nothing can be done about a closed stream.
    let _ = write!(to, "{text}{end}").and_then(|()| to.flush());
}
