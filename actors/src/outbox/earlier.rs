//! What versions before left: they kept the outbox in a SQLite database.
//!
//! Neighbours: asked before the log is opened. Reads three fields of the file's documented form, and never changes it. The
//! version that wrote it publishes what is in it: a reader here would be a second outbox for the sake of one start.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Name of the database in the slot's directory.
const FILE: &str = "outbox.sqlite";
/// What follows the name where a killed process left commits beside the database.
const LOG: &str = "-wal";
/// What every database of SQLite begins with.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Where the size of a page stands, big-endian.
const PAGE_SIZE_AT: u64 = 16;
/// The page at which the table of entries begins: behind the schema and the map that `auto_vacuum` needs. A table keeps
/// its first page.
const ENTRIES_PAGE: u64 = 3;
/// Kind of a page that holds rows.
const LEAF: u8 = 0x0d;

/// The database.
pub(super) fn file_in(slot: &Path) -> PathBuf {
    slot.join(FILE)
}

/// Whether it is there and may hold entries. What cannot be read may.
pub(super) fn may_hold_entries(slot: &Path) -> bool {
    let file = file_in(slot);
    let mut log = file.clone().into_os_string();
    log.push(LOG);
    let unmoved = std::fs::metadata(log).is_ok_and(|log| log.len() > 0);
    match File::open(&file) {
        Err(error) => error.kind() != io::ErrorKind::NotFound || unmoved,
        Ok(file) => unmoved || !is_empty(&file).unwrap_or(false),
    }
}

fn is_empty(file: &File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut magic = [0; MAGIC.len()];
    file.read_exact_at(&mut magic, 0)?;
    let mut size = [0; 2];
    file.read_exact_at(&mut size, PAGE_SIZE_AT)?;
    let mut page = [0; 5];
    let page_size = u64::from(u16::from_be_bytes(size));
    file.read_exact_at(&mut page, (ENTRIES_PAGE - 1) * page_size)?;
    // Kind, two bytes of something else, number of rows.
    Ok(magic == MAGIC && page[0] == LEAF && page[3..] == [0, 0])
}
