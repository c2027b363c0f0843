//! What bytes of any kind may do to the reader: be refused, or be read as exactly what they say.

use proptest::prelude::*;

use super::record::{self, Frame, Header, Record};
use super::*;

fn header() -> Header {
    Header::new(3, EntryId(9), 0x1234_5678)
}

/// The bytes of an entry, without the record around it.
fn content_of(entry: &NewEntry) -> Vec<u8> {
    let mut bytes = Vec::new();
    record::put_entry(&mut bytes, &header(), 50, EntryId(7), entry);
    let frame = Frame::read(&bytes, &header(), 50).unwrap();
    assert_eq!(frame.length(), bytes.len());
    assert!(
        Frame::read(&bytes, &header(), 51).is_none(),
        "it belongs to its place"
    );
    match frame.record().unwrap() {
        Record::Entry(EntryId(7), content) => content.to_vec(),
        _ => panic!("an entry was written"),
    }
}

fn sample() -> NewEntry {
    let mut sample = entry(
        "a",
        vec![message("result", vec![1, 2, 3]), message("dlq", Vec::new())],
    );
    sample.position = Some(("caf-stream".into(), 7));
    sample
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_entry_with_any_bytes_changed_is_refused_or_says_exactly_that(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        to_cut: bool,
    ) {
        let mut bytes = content_of(&sample());
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if to_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(read) = record::entry(EntryId(7), &bytes) {
            prop_assert_eq!(content_of(&read.content), bytes);
        }
    }

    #[test]
    fn bytes_that_nobody_wrote_are_no_record_and_no_header(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        place in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        prop_assert!(!record::has_record(&bytes, &header(), 0));
        prop_assert!(Header::read(&bytes).is_err());
        let mut whole = Vec::new();
        header().put(&mut whole);
        record::put_removal(&mut whole, &header(), 0, &[EntryId(1), EntryId(2)]);
        prop_assert!(record::has_record(&whole, &header(), 0));
        let place = place.index(whole.len());
        whole[place] ^= 1 << bit;
        let header_says = Header::read(&whole).is_ok();
        prop_assert!(!header_says || !record::has_record(&whole, &header(), 0));
    }
}
