//! The NATS protocol, cut into frames. Pure.
//!
//! Neighbours: the proxy feeds what it read and passes on what comes out, byte for byte. What is no known operation is
//! a frame all the same: whoever sent it is to hear the other side's opinion, not ours.

/// Longest line without its end; a server allows 4096 for the client's, its own INFO may be longer.
const LONGEST_LINE: usize = 1024 * 1024;

/// Which way a frame travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the worker.
    ToServer,
    /// To the worker.
    ToWorker,
}

/// One protocol message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which way it travels.
    pub direction: Direction,
    /// Operation in capitals, e.g. `PUB`.
    pub op: String,
    /// Subject of PUB, HPUB, SUB, MSG and HMSG.
    pub subject: Option<String>,
    /// Reply subject of PUB, HPUB, MSG and HMSG.
    pub reply: Option<String>,
    /// Header bytes of HPUB and HMSG, with their version line.
    pub headers: Vec<u8>,
    /// Payload of PUB, HPUB, MSG and HMSG; the rest of the line of all others.
    pub payload: Vec<u8>,
    /// The bytes that travel.
    pub raw: Vec<u8>,
}

impl Frame {
    /// Whether it carries a message from the worker on a subject with this beginning.
    pub fn publishes(&self, subject: &str) -> bool {
        self.direction == Direction::ToServer && self.carries(subject)
    }

    /// Whether it brings the worker a message on a subject with this beginning.
    pub fn delivers(&self, subject: &str) -> bool {
        self.direction == Direction::ToWorker && self.carries(subject)
    }

    fn carries(&self, subject: &str) -> bool {
        let found = self.subject.as_deref().unwrap_or_default();
        matches!(self.op.as_str(), "PUB" | "HPUB" | "MSG" | "HMSG") && found.starts_with(subject)
    }

    /// An INFO that names no other servers: a client that knows them goes around the proxy.
    pub(super) fn without_other_servers(mut self) -> Self {
        if self.op != "INFO" {
            return self;
        }
        let Ok(serde_json::Value::Object(mut info)) = serde_json::from_slice(&self.payload) else {
            return self;
        };
        if info.remove("connect_urls").is_some() {
            self.payload = serde_json::Value::Object(info).to_string().into_bytes();
            self.raw = [b"INFO ", &self.payload[..], b"\r\n"].concat();
        }
        self
    }
}

/// Cuts what one side sent into frames, wherever the borders of the chunks are.
#[derive(Debug)]
pub struct Splitter {
    direction: Direction,
    buffer: Vec<u8>,
}

/// What a line announces.
struct Head {
    op: String,
    subject: Option<String>,
    reply: Option<String>,
    /// Bytes of headers and of all that follows the line, without its end; nothing follows without.
    sizes: Option<(usize, usize)>,
}

impl Splitter {
    /// For what travels this way.
    pub fn new(direction: Direction) -> Self {
        let buffer = Vec::new();
        Self { direction, buffer }
    }

    /// Adds what was read.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next frame that is complete.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let end = self.buffer.windows(2).position(|two| two == b"\r\n");
        let Some(end) = end else {
            // Nobody's line is that long: let the other side see it.
            let endless = self.buffer.len() > LONGEST_LINE;
            return endless.then(|| self.cut(self.buffer.len(), &Head::unknown(), 0));
        };
        let head = Head::of(&self.buffer[..end]);
        let total = match head.sizes {
            None => end + 2,
            Some((_, following)) => end + 2 + following + 2,
        };
        (self.buffer.len() >= total).then(|| self.cut(total, &head, end))
    }

    fn cut(&mut self, total: usize, head: &Head, line_end: usize) -> Frame {
        let rest = self.buffer.split_off(total);
        let raw = std::mem::replace(&mut self.buffer, rest);
        let (headers, payload) = match head.sizes {
            Some((headers, following)) => {
                let begin = line_end + 2;
                (
                    raw[begin..begin + headers].to_vec(),
                    raw[begin + headers..begin + following].to_vec(),
                )
            }
            None => {
                let line = &raw[..line_end];
                let space = line.iter().position(|byte| byte.is_ascii_whitespace());
                (
                    Vec::new(),
                    space.map_or_else(Vec::new, |at| line[at + 1..].to_vec()),
                )
            }
        };
        Frame {
            direction: self.direction,
            op: head.op.clone(),
            subject: head.subject.clone(),
            reply: head.reply.clone(),
            headers,
            payload,
            raw,
        }
    }
}

impl Head {
    fn unknown() -> Self {
        Self {
            op: String::new(),
            subject: None,
            reply: None,
            sizes: None,
        }
    }

    fn of(line: &[u8]) -> Self {
        let line = String::from_utf8_lossy(line);
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let op = words
            .first()
            .map(|op| op.to_ascii_uppercase())
            .unwrap_or_default();
        let mut head = Self {
            op,
            ..Self::unknown()
        };
        let text = |word: &&str| (*word).to_owned();
        let (before_reply, numbers) = match head.op.as_str() {
            "PUB" => (2, 1),
            "HPUB" => (2, 2),
            "MSG" => (3, 1),
            "HMSG" => (3, 2),
            "SUB" => {
                head.subject = words.get(1).map(text);
                return head;
            }
            _ => return head,
        };
        let Some(first_number) = words.len().checked_sub(numbers).filter(|at| *at >= before_reply) else {
            return head;
        };
        let sizes: Vec<usize> = words[first_number..]
            .iter()
            .filter_map(|word| word.parse().ok())
            .collect();
        head.sizes = match sizes[..] {
            [total] if numbers == 1 => Some((0, total)),
            [headers, total] if headers <= total => Some((headers, total)),
            _ => return head,
        };
        head.subject = words.get(1).map(text);
        head.reply = words[before_reply..first_number].first().map(text);
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TALK: &[u8] = b"CONNECT {\"verbose\":false}\r\nPING\r\nSUB in.* 1\r\nPUB a.b 5\r\nhe\r\no\r\n\
        PUB a.c _INBOX.1 0\r\n\r\nHPUB a.d re 12 15\r\nNATS/1.0\r\n\r\nabc\r\nUNSUB 1\r\nwhat is this\r\n";

    fn split(direction: Direction, chunks: &[&[u8]]) -> Vec<Frame> {
        let mut splitter = Splitter::new(direction);
        let mut frames = Vec::new();
        for chunk in chunks {
            splitter.push(chunk);
            frames.extend(std::iter::from_fn(|| splitter.next_frame()));
        }
        frames
    }

    #[test]
    fn a_talk_is_cut_at_the_ends_of_its_messages_and_nowhere_else() {
        let frames = split(Direction::ToServer, &[TALK]);
        let ops: Vec<_> = frames.iter().map(|frame| frame.op.as_str()).collect();
        assert_eq!(
            ops,
            ["CONNECT", "PING", "SUB", "PUB", "PUB", "HPUB", "UNSUB", "WHAT"]
        );
        assert_eq!(frames[0].payload, b"{\"verbose\":false}");
        assert_eq!(
            (frames[2].subject.as_deref(), &*frames[3].payload),
            (Some("in.*"), &b"he\r\no"[..])
        );
        assert_eq!(
            (frames[3].subject.as_deref(), frames[3].reply.as_deref()),
            (Some("a.b"), None)
        );
        assert_eq!(frames[4].reply.as_deref(), Some("_INBOX.1"));
        let with_headers = &frames[5];
        assert_eq!(
            (with_headers.reply.as_deref(), &*with_headers.payload),
            (Some("re"), &b"abc"[..])
        );
        assert_eq!(with_headers.headers, b"NATS/1.0\r\n\r\n");
        assert!(with_headers.publishes("a.") && !with_headers.delivers("a.") && !frames[2].publishes("in"));
        let passed_on: Vec<u8> = frames.into_iter().flat_map(|frame| frame.raw).collect();
        assert_eq!(passed_on, TALK);
    }

    #[test]
    fn what_the_server_says_is_understood_too() {
        let said = b"INFO {}\r\n+OK\r\n-ERR 'x'\r\nMSG a.b 1 3\r\nabc\r\nMSG a 1 re 0\r\n\r\n\
            HMSG a.c 7 re 4 4\r\nNATS\r\nPONG\r\n";
        let frames = split(Direction::ToWorker, &[said]);
        let subjects: Vec<_> = frames
            .iter()
            .filter_map(|frame| frame.subject.as_deref())
            .collect();
        assert_eq!((frames.len(), &subjects[..]), (7, &["a.b", "a", "a.c"][..]));
        assert_eq!(
            (frames[3].reply.as_deref(), &*frames[3].payload),
            (None, &b"abc"[..])
        );
        assert_eq!(
            (frames[4].reply.as_deref(), frames[5].reply.as_deref()),
            (Some("re"), Some("re"))
        );
        assert!(frames[3].delivers("a."));
    }

    #[test]
    fn the_borders_of_chunks_change_nothing() {
        let whole = split(Direction::ToServer, &[TALK]);
        for size in 1..TALK.len() {
            let chunks: Vec<&[u8]> = TALK.chunks(size).collect();
            assert_eq!(split(Direction::ToServer, &chunks), whole, "chunks of {size}");
        }
        for at in 0..TALK.len() {
            let chunks = [&TALK[..at], &TALK[at..]];
            assert_eq!(split(Direction::ToServer, &chunks), whole, "cut at {at}");
        }
    }

    #[test]
    fn numbers_that_make_no_sense_do_not_hold_the_talk_up() {
        let frames = split(
            Direction::ToServer,
            &[b"PUB a x\r\nHPUB a 9 3\r\nPUB\r\nPING\r\n"],
        );
        assert_eq!(frames.len(), 4);
        assert_eq!(frames[0].subject, None);
    }

    #[test]
    fn an_info_names_no_other_servers() {
        let said = b"INFO {\"port\":1,\"connect_urls\":[\"h:1\"]}\r\n";
        let info = split(Direction::ToWorker, &[said])
            .remove(0)
            .without_other_servers();
        assert_eq!(info.raw, b"INFO {\"port\":1}\r\n");
        let ping = split(Direction::ToWorker, &[b"PING\r\n"]).remove(0);
        assert_eq!(ping.clone().without_other_servers(), ping);
    }
}
