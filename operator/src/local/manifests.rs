//! Reads the manifests of a directory as `kubectl apply -f` would, with the API server's checks.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    /// Names that more than one of them has: which is meant is not known.
    pub(super) ambiguous: BTreeSet<String>,
    /// Files with something wrong. While there is one nothing is removed: what has gone from its
    /// place may be what cannot be read there.
    pub(super) broken: Vec<PathBuf>,
    /// What is wrong, for people.
    pub(super) problems: Vec<String>,
    /// Objects of other products that were passed over, as they are told.
    pub(super) passed_over: Vec<String>,
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
    let before = found.problems.len();
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
    let mut objects = Vec::new();
    for (i, document) in documents.into_iter().enumerate().filter(|(_, d)| !d.is_null()) {
        if let Err(text) = flatten(document, &format!("document {}", i + 1), 0, &mut objects) {
            problem(text);
        }
    }
    if objects.is_empty() && found.problems.len() == before {
        let text = "holds no object; delete the file if that is meant";
        found.problems.push(format!("{}: {text}", path.display()));
    }
    for (at, object) in objects {
        take(path, &at, object, found);
    }
}

/// Lists within lists: kubectl reads them, nothing writes more than one.
const LIST_DEPTH: u8 = 4;

/// The objects of a document: itself, or the items of a list, as `kubectl get -o yaml` writes one.
fn flatten(
    mut document: Value,
    at: &str,
    depth: u8,
    objects: &mut Vec<(String, Value)>,
) -> Result<(), String> {
    let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let is_list = match (version.as_str(), kind.as_str()) {
        ("v1", "List") | (API_VERSION, "SseChannelList") => true,
        (_, "List" | "SseChannelList") => {
            return Err(format!(
                "{at}: a {kind} has the apiVersion {}, not {version:?}",
                if kind == "List" { "v1" } else { API_VERSION }
            ));
        }
        _ => false,
    };
    if !is_list {
        objects.push((at.to_owned(), document));
        return Ok(());
    }
    if depth == LIST_DEPTH {
        return Err(format!("{at}: lists within lists go {LIST_DEPTH} deep at most"));
    }
    let Some(items) = document.get_mut("items").and_then(Value::as_array_mut) else {
        return Err(format!("{at}: a {kind} has a list of `items`"));
    };
    for (i, mut item) in std::mem::take(items).into_iter().enumerate() {
        // A typed list need not repeat what its items are.
        if kind == "SseChannelList"
            && let Some(item) = item.as_object_mut()
        {
            item.entry("apiVersion").or_insert_with(|| json!(API_VERSION));
            item.entry("kind").or_insert_with(|| json!(KIND));
        }
        flatten(item, &format!("{at}, item {}", i + 1), depth + 1, objects)?;
    }
    Ok(())
}

/// Adds one object of a file to what was found.
fn take(path: &Path, at: &str, object: Value, found: &mut Found) {
    let problem = |text: String| format!("{}: {text}", path.display());
    match channel(object) {
        Ok(Object::Other(what)) => {
            let text = format!("{at} ({what}) is passed over: only channels are served here");
            found.passed_over.push(problem(text));
        }
        Ok(Object::Channel(channel)) => {
            let name = channel.metadata.name.clone().unwrap_or_default();
            let Some((other, present)) = found.channels.get(&name) else {
                found.channels.insert(name, (path.to_owned(), *channel));
                return;
            };
            let namespace = |c: &SseChannel| c.metadata.namespace.clone().unwrap_or_default();
            let what = if namespace(present) == namespace(&channel) {
                "is defined twice"
            } else {
                "exists in two namespaces"
            };
            let text = format!(
                "channel {name} {what} (the other is in {}); local mode serves one of each name: rename one",
                other.display()
            );
            found.problems.push(problem(text));
            found.ambiguous.insert(name);
        }
        Err(text) => found.problems.push(problem(format!("{at}: {text}"))),
    }
}

const API_VERSION: &str = "sluice.dev/v1alpha1";
const GROUP: &str = "sluice.dev";
const KIND: &str = "SseChannel";
/// Letters that may be wrong in a kind or a group that is still taken for a channel's. One more,
/// and it would be the `Channel` of Knative.
const TYPING_ERRORS: usize = 2;

enum Object {
    Channel(Box<SseChannel>),
    /// Another product's: what it is.
    Other(String),
}

/// What an object is. What may have been meant as a channel is an error when it is none.
fn channel(mut object: Value) -> Result<Object, String> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let like = |text: &str, meant: &str| manifest::distance(text, meant) <= TYPING_ERRORS;
    match (version.as_str(), kind.as_str()) {
        (API_VERSION, KIND) => {}
        (_, KIND) => return Err(format!("apiVersion must be {API_VERSION}, not {version:?}")),
        (_, "") => {
            return Err(format!(
                "has no kind; an SseChannel manifest begins with `apiVersion: {API_VERSION}` and `kind: {KIND}`"
            ));
        }
        ("", _) => return Err(format!("{kind} has no apiVersion")),
        _ if like(group, GROUP) || like(&kind, KIND) => {
            return Err(format!(
                "{version} {kind} is not known here; a channel is `apiVersion: {API_VERSION}` and `kind: {KIND}`"
            ));
        }
        _ => {
            let name = object.pointer("/metadata/name").and_then(Value::as_str);
            return Ok(Object::Other(format!("{version} {kind} {}", name.unwrap_or_default())));
        }
    }
    if let Some(object) = object.as_object_mut() {
        // Of a cluster, in what was read from one.
        object.remove("status");
    }
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return Err("metadata is missing".to_owned());
    };
    let Some(name) = metadata.get("name").and_then(Value::as_str).map(str::to_owned) else {
        return Err("metadata.name is missing".to_owned());
    };
    // The rest is of a cluster, too: an object that is being deleted there is not deleted here.
    metadata
        .retain(|key, _| ["name", "namespace", "labels", "annotations"].contains(&key.as_str()));
    metadata.entry("namespace").or_insert_with(|| json!(DEFAULT_NAMESPACE));
    // The identity of a channel of a directory is its name.
    metadata.insert("uid".to_owned(), json!("local"));
    metadata.insert("generation".to_owned(), json!(1));
    let read = manifest::read(&object).map_err(|problems| format!("channel {name}: {problems}"))?;
    Ok(Object::Channel(Box::new(read)))
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
        assert_eq!(found.passed_over.len(), 1, "not without a word");
        assert!(found.passed_over[0].contains("document 2 (v1 ConfigMap c)"), "{found:?}");
    }

    #[test]
    fn a_list_is_read_as_kubectl_reads_it() {
        // As `kubectl get sse -o yaml` writes it.
        let item = |name: &str| {
            format!(
                "- apiVersion: sluice.dev/v1alpha1\n  kind: SseChannel\n  metadata:\n    name: {name}\n    namespace: shop\n    uid: 6f1c\n    resourceVersion: \"7\"\n    generation: 4\n    deletionTimestamp: \"2026-01-01T00:00:00Z\"\n    finalizers: [sluice.dev/stream]\n    managedFields: [{{manager: kubectl}}]\n  spec: {{stream: {{maxAge: 2h}}}}\n  status: {{observedGeneration: 4, ofLater: 1}}\n"
            )
        };
        let list = format!(
            "apiVersion: v1\nitems:\n{}{}kind: List\nmetadata:\n  resourceVersion: \"\"\n",
            item("a"),
            item("b")
        );
        let typed = "apiVersion: sluice.dev/v1alpha1\nkind: SseChannelList\nitems: [{metadata: {name: c}, spec: {}}]\n";
        let found = found(&[("x.yaml", &list), ("y.yaml", typed)]);
        assert_eq!(found.problems, Vec::<String>::new());
        assert_eq!(found.channels.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        let a = &found.channels["a"].1;
        assert_eq!(a.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!((a.metadata.generation, a.metadata.uid.as_deref()), (Some(1), Some("local")));
        assert!(a.metadata.deletion_timestamp.is_none() && a.status.is_none());

        let bad = list.replace("maxAge: 2h", "maxage: 2h");
        let found = super::tests::found(&[("x.yaml", &bad)]);
        assert!(found.problems[1].contains("document 1, item 2: channel b"), "{found:?}");
    }

    #[test]
    fn what_may_have_been_meant_as_a_channel_is_refused() {
        for (document, message) in [
            ("apiVersion: sluice.dev/v1alpha1\nkind: SSEChannel\n", "`kind: SseChannel`"),
            ("apiVersion: sluice.dev/v1alpha1\nkind: SseChannels\n", "`kind: SseChannel`"),
            ("apiVersion: sluice.dev/v1alpha1\nkind: Channel\n", "`kind: SseChannel`"),
            ("apiVersion: sluice.dev/v1\nkind: SseChannel\n", "apiVersion must be"),
            ("apiVersion: sluice.dev/v1\nkind: Channel\n", "`kind: SseChannel`"),
            ("apiVersion: v1\nkind: SseChannel\n", "apiVersion must be"),
            ("apiVersion: sluce.dev/v1alpha1\nkind: ssechanel\n", "`kind: SseChannel`"),
            ("apiVersion: sluce.dev/v1alpha1\nkind: Stream\n", "`kind: SseChannel`"),
            ("apiVersion: v1\nkind: ssechannel\n", "`kind: SseChannel`"),
            ("kind: ConfigMap\n", "has no apiVersion"),
            ("apiVersion: v1\n", "has no kind"),
            ("apiVersion: v2\nkind: List\nitems: []\n", "apiVersion v1"),
            ("apiVersion: v1\nkind: List\n", "list of `items`"),
            ("- a\n", "has no kind"),
            ("", "holds no object"),
            ("# nothing\n---\n", "holds no object"),
            ("apiVersion: v1\nkind: List\nitems: []\n", "holds no object"),
        ] {
            let found = found(&[("x.yaml", document)]);
            assert_eq!(found.broken.len(), 1, "{document}");
            assert!(found.problems[0].contains(message), "{document}: {:?}", found.problems);
            assert!(found.problems[0].contains("x.yaml"), "{:?}", found.problems);
        }
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
