//! What happened to one assignment, as few bytes as it takes: a busy node notes some dozen happenings for each of ten thousand, and
//! seldom is one of them read.
//!
//! Neighbours: [`super::book`] keeps one for each assignment; [`super::entry`] has the form in which they are read. Messages and names
//! are literals: [`Literals`] knows them by where they are, and numbers stand for them here. Pure.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;
use smol_str::SmolStr;

use super::entry::{ERROR, FACTS, FIRST_NOTES, Fact, LAST_NOTES, MAX_TEXT_BYTES, Meaning, Note, cut, masked};
use crate::events::{Event, Word};

/// Bytes of the happenings of a usual assignment: it is written without growing.
const USUAL_BYTES: usize = 160;

// How the value of a fact begins; a text by its length beyond the last of them.
const NO: u64 = 0;
const YES: u64 = 1;
const NUMBER: u64 = 2;
const TEXT: u64 = 3;

/// Messages and names of events by where they are: to look there takes a tenth of reading them. No more than the program has.
#[derive(Default)]
pub(super) struct Literals {
    messages: Vec<(&'static str, Meaning)>,
    numbers: HashMap<(usize, usize), usize, RandomState>,
    /// The fact that a name stands for, if it is kept.
    facts: HashMap<(usize, usize), Option<u8>, RandomState>,
}

impl Literals {
    /// The number of a message, and what it means.
    pub(super) fn message(&mut self, message: &'static str) -> (usize, Meaning) {
        let at = (message.as_ptr().addr(), message.len());
        let messages = &mut self.messages;
        let number = *self.numbers.entry(at).or_insert_with(|| {
            messages.push((message, Meaning::of(message)));
            messages.len() - 1
        });
        (number, messages[number].1)
    }

    #[expect(clippy::ptr_arg, reason = "it matters whether the name is a literal")]
    fn fact(&mut self, name: &Cow<'static, str>) -> Option<u8> {
        let known = |name: &str| {
            let at = FACTS.binary_search(&name).ok()?;
            u8::try_from(at).ok()
        };
        match name {
            Cow::Borrowed(name) => {
                let at = (name.as_ptr().addr(), name.len());
                *self.facts.entry(at).or_insert_with(|| known(name))
            }
            Cow::Owned(name) => known(name),
        }
    }

    /// Writes an event down.
    pub(super) fn write(&mut self, number: usize, event: &Event, at_ms: u64, into: &mut Vec<u8>) {
        into.clear();
        put(into, at_ms);
        put(into, number as u64);
        for (name, value) in event.fields() {
            if let Some(fact) = self.fact(name) {
                put_fact(into, fact, value);
            }
        }
        if let Some(identity) = event.identity().filter(|identity| identity.replay > 0)
            && let Some(fact) = self.fact(&Cow::Borrowed("replay"))
        {
            put_fact(into, fact, &identity.replay.into());
        }
        if let Some(error) = event.field("error").and_then(Word::as_str) {
            put_fact(into, ERROR, &masked(error).into());
        }
    }

    /// Reads one that [`Literals::write`] wrote.
    fn read(&self, mut bytes: &[u8]) -> Option<Note> {
        let at_ms = take(&mut bytes)?;
        let number = usize::try_from(take(&mut bytes)?).ok()?;
        let mut facts = Vec::new();
        while let Some((fact, rest)) = bytes.split_first() {
            bytes = rest;
            let name = FACTS.get(usize::from(*fact)).copied().unwrap_or("error");
            let value = match take(&mut bytes)? {
                NO => Fact::Flag(false),
                YES => Fact::Flag(true),
                NUMBER => Fact::Number(take(&mut bytes)?),
                length => {
                    let text = bytes.split_off(..usize::try_from(length - TEXT).ok()?)?;
                    Fact::Text(SmolStr::new(std::str::from_utf8(text).ok()?))
                }
            };
            facts.push((name, value));
        }
        Some(Note {
            at_ms,
            event: self.messages.get(number)?.0,
            facts: facts.into(),
        })
    }
}

/// Happenings in order: the first and the last ones, each behind its length.
#[derive(Default)]
pub(super) struct Notes {
    first: Vec<u8>,
    first_count: usize,
    /// Seldom there are any.
    last: Option<Box<Last>>,
}

#[derive(Default)]
struct Last {
    notes: VecDeque<Box<[u8]>>,
    bytes: usize,
    left_out: u64,
}

impl Notes {
    /// Takes one in that is written down.
    pub(super) fn push(&mut self, note: &[u8]) {
        if self.first_count < FIRST_NOTES {
            if self.first.is_empty() {
                self.first.reserve_exact(USUAL_BYTES);
            }
            put(&mut self.first, note.len() as u64);
            self.first.extend_from_slice(note);
            self.first_count += 1;
            return;
        }
        let last = self.last.get_or_insert_default();
        if last.notes.len() == LAST_NOTES
            && let Some(oldest) = last.notes.pop_front()
        {
            last.bytes -= oldest.len();
            last.left_out += 1;
        }
        last.bytes += note.len();
        last.notes.push_back(note.into());
    }

    /// All that are kept, how many of them are from the beginning, and how many are missing after those.
    pub(super) fn read(&self, literals: &Literals) -> (Vec<Note>, usize, u64) {
        let mut first = &*self.first;
        let mut notes = Vec::with_capacity(self.first_count);
        while let Some(length) = take(&mut first).and_then(|length| usize::try_from(length).ok())
            && let Some(note) = first.split_off(..length)
        {
            notes.extend(literals.read(note));
        }
        let begun_with = notes.len();
        let last = self.last.as_deref();
        let later = last.into_iter().flat_map(|last| &last.notes);
        notes.extend(later.filter_map(|note| literals.read(note)));
        (notes, begun_with, last.map_or(0, |last| last.left_out))
    }

    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        let last = self.last.as_ref().map_or(0, |last| {
            size_of::<Last>() + last.notes.capacity() * size_of::<Box<[u8]>>() + last.bytes
        });
        self.first.capacity() + last
    }
}

fn put_fact(into: &mut Vec<u8>, fact: u8, value: &Word) {
    let begins = match value {
        Word::Flag(false) => NO,
        Word::Flag(true) => YES,
        Word::Number(_) => NUMBER,
        Word::Text(text) => TEXT + cut(text, MAX_TEXT_BYTES).len() as u64,
        Word::Other(_) => return,
    };
    into.push(fact);
    put(into, begins);
    match value {
        Word::Number(number) => put(into, *number),
        Word::Text(text) => into.extend_from_slice(cut(text, MAX_TEXT_BYTES).as_bytes()),
        Word::Flag(_) | Word::Other(_) => {}
    }
}

/// A number, seven bits in each byte, the lowest first; all but the last byte have their highest bit set.
fn put(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_are_read_as_they_were_written(numbers in prop::collection::vec(any::<u64>(), 0..8)) {
            let mut bytes = Vec::new();
            numbers.iter().for_each(|number| put(&mut bytes, *number));
            let mut rest = &*bytes;
            let read: Vec<u64> = std::iter::from_fn(|| take(&mut rest)).collect();
            prop_assert_eq!(read, numbers);
        }
    }
}
