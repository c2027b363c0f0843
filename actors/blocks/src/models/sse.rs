//! Reads a stream of server-sent events (HTML standard, section 9.2) however it is cut into pieces.
//!
//! Neighbours: `answer` gives it what arrives. Pure. Knows nothing of what the events say, and holds no more than was
//! given to it since the last one ended; who calls it bounds that.

/// The line and the event that have begun.
#[derive(Debug, Default)]
pub(crate) struct Events {
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    /// Whether the last byte was a carriage return: a line feed after it ends no second line.
    after_return: bool,
    /// Whether a line has ended: what comes first may begin with a byte order mark.
    has_begun: bool,
}

const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

impl Events {
    /// Takes the next bytes; gives the data of the events that end in them.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut ended = Vec::new();
        let mut rest = bytes;
        if self.after_return && !rest.is_empty() {
            self.after_return = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.line.extend_from_slice(&rest[..end]);
            let is_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if is_return {
                self.after_return = rest.is_empty();
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            }
            ended.extend(self.end_line());
        }
        self.line.extend_from_slice(rest);
        ended
    }

    /// The event that had begun when the stream ended: servers leave out the empty line after the last one.
    pub(crate) fn finish(mut self) -> Option<Vec<u8>> {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.data
    }

    fn end_line(&mut self) -> Option<Vec<u8>> {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.has_begun, true) && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        if line.is_empty() {
            return self.data.take();
        }
        let value = match line.strip_prefix(b"data") {
            Some(b"") => b"",
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            // A comment, or a field that says nothing here.
            _ => return None,
        };
        match &mut self.data {
            None => self.data = Some(value.to_vec()),
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(pieces: &[&[u8]]) -> Vec<String> {
        let mut events = Events::default();
        let mut found: Vec<_> = pieces.iter().flat_map(|piece| events.push(piece)).collect();
        found.extend(events.finish());
        found
            .into_iter()
            .map(|data| String::from_utf8_lossy(&data).into_owned())
            .collect()
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        for (text, events) in [
            ("data: a\n\ndata: b\n\n", vec!["a", "b"]),
            ("data:a\r\n\r\ndata:  b\r\n\r\n", vec!["a", " b"]),
            ("data: a\r\rdata: b\r\r", vec!["a", "b"]),
            ("\u{feff}data: a\n\n", vec!["a"]),
            (": comment\n\nevent: x\nid: 1\nretry: 5\ndata: a\n\n", vec!["a"]),
            ("data: a\ndata: b\n\n", vec!["a\nb"]),
            ("data\n\n", vec![""]),
            ("database: x\n\ndata: a\n\n", vec!["a"]),
            ("\n\n\n", vec![]),
            ("data: a", vec!["a"]),
            ("data: a\n", vec!["a"]),
            ("", vec![]),
        ] {
            assert_eq!(all(&[text.as_bytes()]), events, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_stream_is_cut(
            parts in prop::collection::vec(
                prop_oneof![
                    Just("data: {\"a\":1}"), Just("data:"), Just("\n"), Just("\r\n"), Just("\r"), Just(": x"), Just("\u{feff}"), Just("ü"),
                ],
                0..30,
            ),
            cuts in prop::collection::vec(0_usize..200, 0..20),
        ) {
            let text = parts.concat().into_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.push(0);
            cuts.push(text.len());
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(all(&pieces), all(&[&text]));
            let bytes: Vec<&[u8]> = text.chunks(1).collect();
            prop_assert_eq!(all(&bytes), all(&[&text]));
        }
    }
}
