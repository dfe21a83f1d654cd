//! The directory of channel configurations, followed while the pod runs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use sluice_channel::ChannelConfig;

/// Largest configuration file, bytes; a ConfigMap ends at 1 MiB.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// What a look at the directory found.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// New or changed configurations.
    pub(crate) set: Vec<ChannelConfig>,
    pub(crate) removed: Vec<String>,
    /// Files that were refused since the last look, each with the reason; what was in force before
    /// stays so.
    pub(crate) refused: Vec<(PathBuf, String)>,
}

/// What the files held when last looked at.
#[derive(Debug, Default)]
pub(crate) struct ConfigDir {
    path: PathBuf,
    /// File text and the channel it configured, by path.
    known: BTreeMap<PathBuf, (Vec<u8>, Option<String>)>,
    /// Files that could not be read at the last look, with the reason.
    unreadable: BTreeMap<PathBuf, String>,
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
        let mut changes = Changes::default();
        let mut seen = BTreeMap::new();
        let mut unreadable = BTreeMap::new();
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            // A mounted ConfigMap is a set of links through a directory whose name begins with
            // dots.
            let hidden =
                path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
            if hidden || path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match read(&path) {
                Ok(text) => {
                    let channel = self.look(&path, &text, &mut changes);
                    seen.insert(path, (text, channel));
                }
                Err(error) => {
                    if let Some(known) = self.known.remove(&path) {
                        seen.insert(path.clone(), known);
                    }
                    let reason = error.to_string();
                    if self.unreadable.get(&path) != Some(&reason) {
                        changes.refused.push((path.clone(), reason.clone()));
                    }
                    unreadable.insert(path, reason);
                }
            }
        }
        let still: Vec<&String> =
            seen.values().filter_map(|(_, channel)| channel.as_ref()).collect();
        changes.removed = self
            .known
            .values()
            .filter_map(|(_, channel)| channel.clone())
            .filter(|name| !still.contains(&name))
            .collect();
        self.known = seen;
        self.unreadable = unreadable;
        Ok(changes)
    }

    /// Notes what changed in one file; returns the channel it is of.
    fn look(&self, path: &Path, text: &[u8], changes: &mut Changes) -> Option<String> {
        let known = self.known.get(path);
        if let Some((_, channel)) = known.filter(|(before, _)| before == text) {
            return channel.clone();
        }
        match ChannelConfig::from_json(text) {
            Ok(config) => {
                let name = config.name.to_string();
                changes.set.push(config);
                Some(name)
            }
            Err(error) => {
                changes.refused.push((path.to_owned(), error.to_string()));
                known.and_then(|(_, channel)| channel.clone())
            }
        }
    }
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
}
