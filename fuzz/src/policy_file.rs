//! The policy files of retries, limits and queues.

use std::path::Path;

use caf_testkit::TempDir;
use caf_worker::settings::catalogue::Catalogue;
use caf_worker::settings::feature::Feature;
use caf_worker::settings::load::policy_file::PolicyFile;
use caf_worker::settings::load::{Sources, load};

use super::settings::check_refused;

/// `config check --policy` and the start of a node never disagree, and what is wrong is told with its key.
pub fn holds(bytes: &[u8]) {
    let Some((which, text)) = bytes.split_first() else {
        return;
    };
    let files: Vec<_> = Feature::ALL
        .iter()
        .filter_map(|feature| feature.policy_file())
        .collect();
    let file = Path::new(files[usize::from(*which) % files.len()]);
    let dir = TempDir::new("fuzz-policy").expect("creates");
    let path = dir.path().join(file);
    std::fs::create_dir_all(path.parent().expect("is below")).expect("creates");
    std::fs::write(path, text).expect("writes");
    let judged = PolicyFile::judge(Catalogue::of_settings(), dir.path(), file);
    let sources = Sources {
        working_dir: dir.path().to_owned(),
        ..Sources::default()
    };
    let loaded = load(&sources);
    let problems: Vec<_> = judged.problems().map(ToString::to_string).collect();
    assert_eq!(problems.is_empty(), loaded.is_ok(), "{problems:?} {loaded:?}");
    assert_eq!(judged.worst().is_none(), problems.is_empty());
    if let Err(error) = loaded {
        check_refused(&error);
    }
}
