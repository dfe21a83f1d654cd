//! Reads the manifests of a directory as `kubectl apply -f` would, with the API server's checks.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::{Value, json};

use crate::crd::{SseChannel, manifest};

/// Largest manifest file, bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Namespace of a manifest that names none, as with kubectl.
const DEFAULT_NAMESPACE: &str = "default";

/// The directory cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not there, or not ours to read.
    #[error("cannot read manifests in {}: {source}. Name a directory with *.yaml files", dir.display())]
    Directory { dir: PathBuf, source: std::io::Error },
    /// No manifest in it.
    #[error("no *.yaml or *.yml file in {}: put an SseChannel manifest there", .0.display())]
    Empty(PathBuf),
}

/// Files, their sizes and times: what tells that something may have changed.
pub(super) type Fingerprint = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// What a directory holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Valid channels by name, each with its file.
    pub(super) channels: BTreeMap<String, (PathBuf, SseChannel)>,
    /// Files with something wrong: their former channels stay.
    pub(super) broken: Vec<PathBuf>,
    /// What is wrong, for people.
    pub(super) problems: Vec<String>,
    pub(super) fingerprint: Fingerprint,
}

pub(super) fn read(dir: &Path) -> Result<Found, Error> {
    let fingerprint = fingerprint(dir)?;
    if fingerprint.is_empty() {
        return Err(Error::Empty(dir.to_owned()));
    }
    let mut found = Found::default();
    for path in fingerprint.keys() {
        let before = found.problems.len();
        read_file(path, &mut found);
        if found.problems.len() > before {
            found.broken.push(path.clone());
        }
    }
    found.fingerprint = fingerprint;
    Ok(found)
}

pub(super) fn read_if_changed(dir: &Path, known: &Fingerprint) -> Result<Option<Found>, Error> {
    if fingerprint(dir)? == *known { Ok(None) } else { read(dir).map(Some) }
}

fn fingerprint(dir: &Path) -> Result<Fingerprint, Error> {
    let fail = |source| Error::Directory { dir: dir.to_owned(), source };
    let mut files = Fingerprint::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        if yaml
            && !hidden
            && let Ok(metadata) = path.metadata()
            && metadata.is_file()
        {
            files.insert(path, (metadata.len(), metadata.modified().ok()));
        }
    }
    Ok(files)
}

fn read_file(path: &Path, found: &mut Found) {
    let mut problem = |text: String| found.problems.push(format!("{}: {text}", path.display()));
    match path.metadata() {
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            return problem(format!("is larger than {MAX_FILE_BYTES} bytes"));
        }
        _ => {}
    }
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return problem(error.to_string()),
    };
    let documents: Vec<Value> = match serde_saphyr::from_multiple(&text) {
        Ok(documents) => documents,
        Err(error) => return problem(format!("is not YAML: {error}")),
    };
    for document in documents {
        match channel(document) {
            Ok(None) => {}
            Ok(Some(channel)) => {
                let name = channel.metadata.name.clone().unwrap_or_default();
                if let Some((other, present)) = found.channels.get(&name) {
                    let namespace =
                        |c: &SseChannel| c.metadata.namespace.clone().unwrap_or_default();
                    let what = if namespace(present) == namespace(&channel) {
                        "is defined twice"
                    } else {
                        "exists in two namespaces"
                    };
                    let text = format!(
                        "channel {name} {what} (the other is in {}); local mode serves one of each name: rename one",
                        other.display()
                    );
                    found.problems.push(format!("{}: {text}", path.display()));
                } else {
                    found.channels.insert(name, (path.to_owned(), channel));
                }
            }
            Err(text) => found.problems.push(format!("{}: {text}", path.display())),
        }
    }
}

/// A document's channel; other kinds of objects are none of ours.
fn channel(mut document: Value) -> Result<Option<SseChannel>, String> {
    if document.is_null() {
        return Ok(None);
    }
    let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    match (text("apiVersion").as_str(), text("kind").as_str()) {
        ("sluice.dev/v1alpha1", "SseChannel") => {}
        (version, "SseChannel") => {
            return Err(format!("apiVersion must be sluice.dev/v1alpha1, not {version:?}"));
        }
        (_, "") => {
            return Err(
                "has no kind; an SseChannel manifest begins with `apiVersion: sluice.dev/v1alpha1` and `kind: SseChannel`".to_owned()
            );
        }
        _ => return Ok(None),
    }
    let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) else {
        return Err("metadata is missing".to_owned());
    };
    let Some(name) = metadata.get("name").and_then(Value::as_str).map(str::to_owned) else {
        return Err("metadata.name is missing".to_owned());
    };
    metadata.entry("namespace").or_insert_with(|| json!(DEFAULT_NAMESPACE));
    // The identity of a channel of a directory is its name.
    metadata.insert("uid".to_owned(), json!("local"));
    metadata.insert("generation".to_owned(), json!(1));
    manifest::read(&document).map(Some).map_err(|problems| format!("channel {name}: {problems}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Found {
        let dir = tempdir();
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
        let found = read(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        found
    }

    fn tempdir() -> PathBuf {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir =
            std::env::temp_dir().join(format!("sluice-manifests-{}-{next}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    const HEAD: &str = "apiVersion: sluice.dev/v1alpha1\nkind: SseChannel\n";

    #[test]
    fn several_documents_and_other_kinds() {
        let text = format!(
            "{HEAD}metadata: {{name: a}}\nspec: {{}}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\n---\n{HEAD}metadata: {{name: b, namespace: shop}}\nspec: {{}}\n"
        );
        let found = found(&[("x.yaml", &text), ("notes.txt", "no manifest")]);
        assert_eq!(found.problems, Vec::<String>::new());
        let namespaces: Vec<_> =
            found.channels.values().map(|(_, c)| c.metadata.namespace.clone().unwrap()).collect();
        assert_eq!(namespaces, ["default", "shop"]);
    }

    #[test]
    fn what_is_wrong_is_named_and_the_rest_is_read() {
        let good = format!("{HEAD}metadata: {{name: good}}\nspec: {{}}\n");
        for (bad, message) in [
            (": : :\n  - [".to_owned(), "is not YAML"),
            (
                format!("{HEAD}metadata: {{name: bad}}\nspec: {{stream: {{maxage: 1h}}}}\n"),
                "did you mean maxAge?",
            ),
            (format!("{HEAD}metadata: {{name: Bad}}\nspec: {{}}\n"), "DNS label"),
            (format!("{HEAD}metadata: {{}}\nspec: {{}}\n"), "metadata.name is missing"),
            (
                "kind: SseChannel\nmetadata: {name: bad}\nspec: {}\n".to_owned(),
                "apiVersion must be",
            ),
            (
                format!("{HEAD}metadata: {{name: good, namespace: other}}\nspec: {{}}\n"),
                "exists in two namespaces",
            ),
        ] {
            let found = found(&[("a.yaml", &good), ("b.yml", &bad)]);
            assert_eq!(found.channels.len(), 1, "{bad}");
            assert!(
                found.problems.len() == 1 && found.problems[0].contains(message),
                "{:?}",
                found.problems
            );
        }
    }
}
