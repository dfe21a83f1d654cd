//! The directory of channel configurations, followed while the pod runs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use sluice_channel::{ChannelConfig, config::Reading};

/// Largest configuration file, bytes; a ConfigMap ends at 1 MiB.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Most refused files that are told, and longest reason, characters: what `/readyz` says has to
/// stay short.
const TOLD_FILES: usize = 16;
const REASON_CHARS: usize = 512;

/// What a look at the directory found.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// New or changed configurations.
    pub(crate) set: Vec<ChannelConfig>,
    pub(crate) removed: Vec<String>,
    /// Files that were refused since the last look, each with the reason; what was in force before
    /// stays so.
    pub(crate) refused: Vec<(PathBuf, String)>,
    /// Files that are in force without the fields named here, which this build does not know.
    pub(crate) unknown: Vec<(PathBuf, Vec<String>)>,
    /// What stands in the way at this moment.
    pub(crate) troubles: Troubles,
}

/// What of the directory is not in force, at the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Troubles {
    /// Files that are refused.
    pub(crate) refused: Vec<Refused>,
    /// Fields in files that are in force, which this build does not know.
    pub(crate) unknown_fields: usize,
    /// Why the directory itself cannot be read.
    pub(crate) directory: Option<String>,
}

/// A file that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) file: String,
    pub(crate) reason: String,
    /// The channel that it names, where that much can be read.
    names: Option<String>,
    /// The channel that is in force by what this file held before.
    keeps: Option<String>,
}

impl Refused {
    fn new(path: &Path, reason: &str, names: Option<String>, keeps: Option<String>) -> Self {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { file, reason: reason.chars().take(REASON_CHARS).collect(), names, keeps }
    }

    fn may_name(&self, channel: &str) -> bool {
        self.names.as_ref().is_none_or(|name| name == channel)
    }
}

impl Troubles {
    /// Whether a channel of this name may be configured although it is not served: whether it
    /// exists is not known.
    #[must_use]
    pub(crate) fn may_name(&self, channel: &str) -> bool {
        self.directory.is_some() || self.refused.iter().any(|file| file.may_name(channel))
    }

    /// Whether something was configured that has never been in force.
    #[must_use]
    pub(crate) fn never_in_force(&self) -> bool {
        self.refused.iter().any(|file| file.keeps.is_none())
    }

    /// Those of the refused files that are told, first.
    pub(crate) fn told(&self) -> impl Iterator<Item = &Refused> {
        self.refused.iter().take(TOLD_FILES)
    }
}

/// What one file held when last looked at.
#[derive(Debug)]
struct Known {
    /// Its text; none: it could not be read.
    text: Option<Vec<u8>>,
    /// The channel that is in force by it.
    channel: Option<String>,
    /// Why it is refused, if it is.
    refused: Option<Refused>,
    unknown_fields: usize,
}

/// What the files held when last looked at.
#[derive(Debug, Default)]
pub(crate) struct ConfigDir {
    path: PathBuf,
    known: BTreeMap<PathBuf, Known>,
    /// Channels that stay in force although their file is gone, since a refused one may name them.
    kept: Vec<String>,
}

impl ConfigDir {
    /// Follows the `*.json` files of `path`.
    #[must_use]
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), ..Self::default() }
    }

    /// Looks for changes since the last look. Blocking: the files are small and local.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub(crate) fn poll(&mut self) -> std::io::Result<Changes> {
        // As a whole first: half a list would look as if the other half had been removed.
        let entries = std::fs::read_dir(&self.path)?.collect::<Result<Vec<_>, _>>()?;
        let mut changes = Changes::default();
        let mut seen = BTreeMap::new();
        for path in entries.into_iter().map(|entry| entry.path()) {
            // A mounted ConfigMap is a set of links through a directory whose name begins with
            // dots.
            let hidden =
                path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
            if hidden || path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let before = self.known.remove(&path);
            let now = look(&path, before, &mut changes);
            seen.insert(path, now);
        }
        let before = std::mem::replace(&mut self.known, seen);
        self.remove(before, &mut changes);
        changes.troubles = Troubles {
            refused: self.known.values().filter_map(|file| file.refused.clone()).collect(),
            unknown_fields: self.known.values().map(|file| file.unknown_fields).sum(),
            directory: None,
        };
        Ok(changes)
    }

    /// Notes the channels that no file is left for. What is told of a removed channel is final to
    /// its subscribers, so a channel stays while a file that has never been in force may be its
    /// own: under another name, or made anew with a mistake.
    fn remove(&mut self, gone: BTreeMap<PathBuf, Known>, changes: &mut Changes) {
        let mut without = std::mem::take(&mut self.kept);
        without.extend(gone.into_values().filter_map(|file| file.channel));
        without.append(&mut changes.removed);
        without.sort();
        without.dedup();
        for channel in without {
            if self.known.values().any(|file| file.channel.as_ref() == Some(&channel)) {
                continue;
            }
            let mut refused = self.known.values().filter_map(|file| file.refused.as_ref());
            if refused.any(|file| file.keeps.is_none() && file.may_name(&channel)) {
                self.kept.push(channel);
            } else {
                changes.removed.push(channel);
            }
        }
    }
}

/// Looks at one file, which was as `before` at the last look.
fn look(path: &Path, before: Option<Known>, changes: &mut Changes) -> Known {
    let text = match read(path) {
        Ok(text) => text,
        Err(error) => return refuse(path, None, &error.to_string(), before, changes),
    };
    let before = match before {
        Some(before) if before.text.as_ref() == Some(&text) => return before,
        before => before,
    };
    let Reading { config, unknown } = match ChannelConfig::read(&text) {
        Ok(reading) => reading,
        Err(error) => return refuse(path, Some(text), &error.to_string(), before, changes),
    };
    let channel = config.name.to_string();
    // The file may be of another channel now; whether the former one is gone is decided once all
    // files were looked at.
    let was = before.and_then(|before| before.channel);
    changes.removed.extend(was.filter(|was| *was != channel));
    changes.set.push(config);
    let unknown_fields = unknown.len();
    if !unknown.is_empty() {
        changes.unknown.push((path.to_owned(), unknown));
    }
    Known { text: Some(text), channel: Some(channel), refused: None, unknown_fields }
}

/// Notes that a file is of no use; what was in force by it stays so.
fn refuse(
    path: &Path,
    text: Option<Vec<u8>>,
    reason: &str,
    before: Option<Known>,
    changes: &mut Changes,
) -> Known {
    let (channel, told) = match before {
        Some(Known { text: before, channel, refused, .. }) => {
            (channel, refused.filter(|_| before.is_none()))
        }
        None => (None, None),
    };
    let names = text.as_deref().and_then(ChannelConfig::name_of).map(|name| name.to_string());
    let refused = Refused::new(path, reason, names, channel.clone());
    // What cannot be read is tried at each look and told once.
    if text.is_some() || told.as_ref() != Some(&refused) {
        changes.refused.push((path.to_owned(), refused.reason.clone()));
    }
    Known { text, channel, refused: Some(refused), unknown_fields: 0 }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(std::io::Error::other("larger than 1 MiB"));
    }
    std::fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str, heartbeat: u32) -> String {
        format!(
            r#"{{"version":1,"name":"{name}","namespace":"d","generation":1,"delivery":{{"heartbeatMillis":{heartbeat}}},
            "stream":{{"name":"s","subjects":["a.>"],"topicPrefix":"a."}}}}"#
        )
    }

    #[test]
    fn changes_are_found_and_mistakes_change_nothing() {
        let dir = std::env::temp_dir().join(format!(
            "sluice-config-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("a.json");
        let mut config = ConfigDir::new(&dir);
        std::fs::write(&file, text("a", 1000)).unwrap();
        std::fs::write(dir.join("notes.txt"), "x").unwrap();
        let changes = config.poll().unwrap();
        assert_eq!((changes.set.len(), changes.removed.len(), changes.refused.len()), (1, 0, 0));
        assert!(config.poll().unwrap().set.is_empty());
        std::fs::write(&file, "{").unwrap();
        let changes = config.poll().unwrap();
        assert_eq!((changes.set.len(), changes.removed.len(), changes.refused.len()), (0, 0, 1));
        assert!(config.poll().unwrap().refused.is_empty(), "said once, not at each look");
        std::fs::write(&file, text("a", 2000)).unwrap();
        assert_eq!(config.poll().unwrap().set.len(), 1);
        std::fs::File::create(&file).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        let changes = config.poll().unwrap();
        assert_eq!((changes.set.len(), changes.removed.len(), changes.refused.len()), (0, 0, 1));
        assert!(config.poll().unwrap().refused.is_empty(), "said once, unreadable or malformed");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(config.poll().unwrap().removed, ["a"]);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_channel_stays_while_a_file_that_was_never_in_force_may_be_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let newer = |name: &str| text(name, 1000).replace("\"version\":1", "\"version\":2");
        let mut config = ConfigDir::new(dir.path());
        std::fs::write(at("a.json"), text("a", 1000)).unwrap();
        std::fs::write(at("b.json"), text("b", 1000)).unwrap();
        let first = config.poll().unwrap();
        assert_eq!((first.set.len(), first.troubles), (2, Troubles::default()));

        // A file is renamed and of a format that is not known: its channel was not removed.
        std::fs::remove_file(at("a.json")).unwrap();
        std::fs::write(at("renamed.json"), newer("a")).unwrap();
        let changes = config.poll().unwrap();
        assert_eq!((changes.removed.len(), changes.refused.len()), (0, 1));
        assert!(changes.troubles.may_name("a") && !changes.troubles.may_name("b"));
        assert!(changes.troubles.never_in_force());
        // Another channel's file that goes away is no riddle.
        std::fs::remove_file(at("b.json")).unwrap();
        assert_eq!(config.poll().unwrap().removed, ["b"]);
        // Once the file is gone, so is the channel.
        std::fs::remove_file(at("renamed.json")).unwrap();
        let changes = config.poll().unwrap();
        assert_eq!(
            (changes.removed, changes.troubles),
            (vec!["a".to_owned()], Troubles::default())
        );
    }

    #[test]
    fn a_file_that_tells_no_name_may_be_of_any_channel() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        let mut config = ConfigDir::new(dir.path());
        std::fs::write(&file, "{").unwrap();
        let troubles = config.poll().unwrap().troubles;
        assert!(troubles.may_name("a") && troubles.may_name("x") && troubles.never_in_force());
        std::fs::write(&file, text("a", 1000).replacen('{', "{\"later\":1,", 1)).unwrap();
        let changes = config.poll().unwrap();
        assert_eq!((changes.set.len(), changes.unknown.len()), (1, 1));
        assert_eq!((changes.troubles.refused.len(), changes.troubles.unknown_fields), (0, 1));
        // It has been in force: the pod is not held back by what comes after.
        std::fs::write(&file, "{").unwrap();
        let changes = config.poll().unwrap();
        assert!(!changes.troubles.never_in_force() && changes.removed.is_empty());
        assert_eq!(changes.troubles.refused[0].file, "a.json");
    }
}
