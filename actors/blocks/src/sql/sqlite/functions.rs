//! Functions of SQLite whose own forms compare every place of one text with all of another: two texts of a megabyte keep a
//! thread for a minute, and nothing interrupts a function. These do the same in one pass.
//!
//! Neighbours: [`super`] puts them in the place of the built-in ones on each connection. They differ from those only in
//! how a float is written that is searched as text.

use std::borrow::Cow;
use std::collections::HashSet;

use memchr::memmem;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, Error, ToSql, ffi};

/// Puts them in place. No result is longer than `max_bytes`.
pub(super) fn replace_slow_ones(connection: &Connection, max_bytes: u64) -> Result<(), Error> {
    let flags =
        FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    connection.create_scalar_function("instr", 2, flags, |context| Ok(instr(context)))?;
    connection.create_scalar_function("replace", 3, flags, move |context| replace(context, max_bytes))?;
    connection.create_scalar_function("trim", 2, flags, |context| Ok(trim(context, true, true)))?;
    connection.create_scalar_function("ltrim", 2, flags, |context| Ok(trim(context, true, false)))?;
    connection.create_scalar_function("rtrim", 2, flags, |context| Ok(trim(context, false, true)))
}

/// Text that need not be UTF-8, as SQLite has it.
struct Text(Vec<u8>);

impl ToSql for Text {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>, Error> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(&self.0)))
    }
}

/// An argument as text; nothing for NULL.
fn text<'a>(context: &'a Context<'_>, index: usize) -> Option<Cow<'a, [u8]>> {
    match context.get_raw(index) {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string().into_bytes().into()),
        ValueRef::Real(number) => Some(format!("{number:?}").into_bytes().into()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes.into()),
    }
}

/// Where the second argument begins in the first, from 1: in characters, or in bytes when both are blobs.
fn instr(context: &Context<'_>) -> Option<i64> {
    let (haystack, needle) = (text(context, 0)?, text(context, 1)?);
    let is_blob = |index| matches!(context.get_raw(index), ValueRef::Blob(_));
    let found = memmem::find(&haystack, &needle).map(|at| {
        if is_blob(0) && is_blob(1) {
            at
        } else {
            // Every byte that begins a character.
            haystack[..at].iter().filter(|byte| **byte & 0xc0 != 0x80).count()
        }
    });
    Some(found.map_or(0, |before| i64::try_from(before + 1).unwrap_or(i64::MAX)))
}

fn replace(context: &Context<'_>, max_bytes: u64) -> Result<Option<Text>, Error> {
    let (Some(text), Some(old), Some(new)) = (text(context, 0), text(context, 1), text(context, 2)) else {
        return Ok(None);
    };
    if old.is_empty() {
        return Ok(Some(Text(text.into_owned())));
    }
    let mut replaced = Vec::new();
    let mut from = 0;
    for at in memmem::find_iter(&text, &*old) {
        replaced.extend_from_slice(&text[from..at]);
        replaced.extend_from_slice(&new);
        from = at + old.len();
        if replaced.len() as u64 > max_bytes {
            return Err(Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_TOOBIG), None));
        }
    }
    replaced.extend_from_slice(&text[from..]);
    Ok(Some(Text(replaced)))
}

/// The first argument without the characters of the second at its ends.
fn trim(context: &Context<'_>, left: bool, right: bool) -> Value {
    let (Some(text), Some(characters)) = (text(context, 0), text(context, 1)) else {
        return Value::Null;
    };
    let (text, characters) = (
        String::from_utf8_lossy(&text),
        String::from_utf8_lossy(&characters),
    );
    let characters: HashSet<char> = characters.chars().collect();
    let mut rest = &*text;
    if left {
        rest = rest.trim_start_matches(|c| characters.contains(&c));
    }
    if right {
        rest = rest.trim_end_matches(|c| characters.contains(&c));
    }
    Value::Text(rest.to_owned())
}
