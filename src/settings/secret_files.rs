//! Reads one secret from a file, as containers and service managers hand them out.
//!
//! Neighbours: [`super::sources`] reads those that a key or variable with `_file` at its end names,
//! [`super::named_secrets`] those of the section `secrets`. Never says anything of what is in a file.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use caf_protocol::secret::Secret;
use zeroize::Zeroizing;

/// Largest file in bytes: what a secret of Kubernetes or a list of headers may take, many times over.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// The bit by which everybody may read a file.
const READABLE_BY_ALL: u32 = 0o004;

/// What was found.
#[derive(Debug)]
pub(super) struct SecretFile {
    /// The content, without one line break at its end.
    pub(super) value: Secret,
    /// What an operator should hear of it.
    pub(super) warning: Option<String>,
}

/// Reads `path`, given relative to `base`.
///
/// # Errors
/// Why there is no value, as a rule that the path breaks.
pub(super) fn read_secret_file(base: &Path, path: &Path) -> Result<SecretFile, String> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => format!("names the file {shown}, which is not there"),
        ErrorKind::PermissionDenied => format!("names the file {shown}, which this user may not read"),
        _ => format!("names the file {shown}, which cannot be read: {error}"),
    };
    let whole = base.join(path);
    let found = std::fs::metadata(&whole).map_err(unreadable)?;
    if !found.is_file() {
        // To read a pipe could take for ever.
        return Err(format!("names {shown}, which is no regular file"));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    let file = File::open(&whole).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!(
            "names the file {shown}, which is larger than {MAX_FILE_BYTES} bytes"
        ));
    }
    let text =
        std::str::from_utf8(&bytes).map_err(|_| format!("names the file {shown}, which is not UTF-8"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(format!("names the file {shown}, which is empty"));
    }
    let mode = found.permissions().mode() & 0o777;
    let warning = (mode & READABLE_BY_ALL != 0).then(|| {
        format!("the file {shown} holds a secret and every user of this host may read it (mode {mode:04o})")
    });
    Ok(SecretFile {
        value: Secret::new(text),
        warning,
    })
}

#[cfg(test)]
mod tests;
