//! Recorded answers: one JSON file each, read once at the start.
//!
//! Neighbours: [`super`] asks before it makes something up. A file holds `job_type`, `inputs` (absent: any) and either
//! `outputs` or `error_code` with `error`. Nothing is read while jobs run, and nothing is ever recorded here: an operator
//! takes outputs of real results.

use std::collections::HashMap;
use std::path::Path;

use caf_protocol::block::{Inputs, Outputs};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::json;
use caf_protocol::outcome::Failure;
use serde::Deserialize;
use serde_json::Value;

/// Most files; a rehearsal that needs more has a server of its own.
const MAX_FILES: usize = 1_000;
/// Most bytes of all files together: they stay in memory.
const MAX_BYTES: u64 = 16 << 20;

/// One file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recording {
    job_type: String,
    inputs: Option<Inputs>,
    outputs: Option<Outputs>,
    error_code: Option<ErrorCode>,
    error: Option<String>,
}

/// All of them, by job type and inputs; none stands for any.
#[derive(Default)]
pub(super) struct Recordings(HashMap<(String, Option<String>), Result<Outputs, Failure>>);

impl Recordings {
    /// Reads every `.json` file of a directory. The error is a rule, which names the file that breaks it.
    pub(super) fn read(directory: &Path) -> Result<Self, String> {
        let entries = std::fs::read_dir(directory)
            .map_err(|error| format!("must be a directory that can be read ({error})"))?;
        let mut files: Vec<_> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "json") && path.is_file())
            .collect();
        files.sort();
        if files.len() > MAX_FILES {
            return Err(format!("must hold at most {MAX_FILES} .json files"));
        }
        let mut recordings = Self::default();
        let mut left = MAX_BYTES;
        for file in files {
            let name = file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let size = file.metadata().map_or(0, |metadata| metadata.len());
            left = left
                .checked_sub(size)
                .ok_or_else(|| format!("must hold at most {MAX_BYTES} bytes of .json files"))?;
            let bytes = std::fs::read(&file).map_err(|error| format!("{name} cannot be read ({error})"))?;
            recordings.add(&bytes).map_err(|rule| format!("{name} {rule}"))?;
        }
        Ok(recordings)
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), String> {
        let form = "must be one JSON object with job_type, inputs (or none for any) and either outputs or error_code";
        let document = json::parse(bytes).map_err(|error| format!("is not valid JSON ({error})"))?;
        let recording: Recording = serde_json::from_value(document.value).map_err(|_| form.to_owned())?;
        let answer = match (recording.outputs, recording.error_code) {
            (Some(outputs), None) => Ok(outputs),
            (None, Some(code)) => {
                let message = recording.error.unwrap_or_else(|| code.sentence().to_owned());
                Err(Failure::new(code, message).with("sandbox", true.into()))
            }
            _ => return Err(form.to_owned()),
        };
        let key = (recording.job_type, recording.inputs.map(text_of));
        match self.0.insert(key, answer) {
            None => Ok(()),
            Some(_) => Err("answers what another file answers already".to_owned()),
        }
    }

    /// The answer for these inputs, else the one for any.
    pub(super) fn find(&self, job_type: &str, inputs: &Inputs) -> Option<Result<Outputs, Failure>> {
        if self.0.is_empty() {
            return None;
        }
        let exact = (job_type.to_owned(), Some(text_of(inputs.clone())));
        let any = (job_type.to_owned(), None);
        self.0.get(&exact).or_else(|| self.0.get(&any)).cloned()
    }
}

/// The same text for the same values: maps are sorted.
fn text_of(inputs: Inputs) -> String {
    Value::Object(inputs).to_string()
}
