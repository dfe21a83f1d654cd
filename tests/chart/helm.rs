//! The real helm.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use sluice_tests::{kube_api::KubeApi, process::tool};
use tempfile::TempDir;

/// Release that is rendered.
pub(crate) const RELEASE: &str = "sluice";
/// Namespace that it is rendered for.
pub(crate) const NAMESPACE: &str = "sluice-system";

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The chart's folder.
pub(crate) fn chart() -> PathBuf {
    root().join("charts/sluice")
}

/// A file of the project.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Kubeconfig with all rights.
pub(crate) fn admin_conf(kube_api: &KubeApi) -> PathBuf {
    let kubectl = kube_api.kubectl();
    let variable = kubectl
        .get_envs()
        .find(|(name, _)| *name == OsStr::new("KUBECONFIG"))
        .and_then(|(_, value)| value);
    PathBuf::from(variable.expect("kubectl is told of its API server"))
}

/// What a program said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Its standard output, once it has succeeded.
    pub(crate) fn expect(self, what: &str) -> String {
        assert!(self.ok, "{what}:\n{}{}", self.out, self.err);
        self.out
    }
}

/// Runs helm with `values` as a file; `kubeconfig` is nowhere unless given.
pub(crate) fn helm(arguments: &[&str], values: &Value, kubeconfig: Option<&Path>) -> Said {
    let files = TempDir::with_prefix("sluice-helm-").unwrap();
    let file = files.path().join("values.json");
    std::fs::write(&file, values.to_string()).unwrap();
    let mut command = Command::new(tool("helm"));
    command.args(arguments);
    if !values.is_null() {
        command.arg("--values").arg(&file);
    }
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HOME"] {
        command.env(variable, files.path());
    }
    command.env("KUBECONFIG", kubeconfig.unwrap_or(Path::new("/nonexistent")));
    Said::of(&mut command)
}

/// Renders the chart.
pub(crate) fn template(values: &Value) -> Said {
    helm(&["template", RELEASE, chart().to_str().unwrap(), "--namespace", NAMESPACE], values, None)
}

/// Rendered objects by kind and name.
pub(crate) struct Objects(BTreeMap<(String, String), Value>);

impl Objects {
    /// Renders the chart, which must succeed.
    pub(crate) fn rendered(values: &Value) -> Self {
        Self::parsed(&template(values).expect(&format!("helm template with {values}")))
    }

    /// The objects of a YAML text; no two may be the same.
    pub(crate) fn parsed(yaml: &str) -> Self {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(yaml).unwrap_or_else(|e| panic!("{e}:\n{yaml}"));
        let mut objects = BTreeMap::new();
        for object in documents.into_iter().filter(|object| !object.is_null()) {
            let text = |pointer: &str| {
                object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
            };
            let key = (text("/kind"), text("/metadata/name"));
            assert!(!key.0.is_empty() && !key.1.is_empty(), "not an object: {object:#}");
            assert!(objects.insert(key.clone(), object).is_none(), "{key:?} is rendered twice");
        }
        Self(objects)
    }

    /// One object.
    pub(crate) fn get(&self, kind: &str, name: &str) -> &Value {
        self.find(kind, name)
            .unwrap_or_else(|| panic!("no {kind} {name} among {:?}", self.0.keys()))
    }

    /// One object, if it is there.
    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.0.get(&(kind.to_owned(), name.to_owned()))
    }

    /// Names of the objects of a kind.
    pub(crate) fn names(&self, kind: &str) -> Vec<&str> {
        self.0.keys().filter(|(of, _)| of == kind).map(|(_, name)| name.as_str()).collect()
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Value> {
        self.0.values()
    }

    /// What the operator is started with.
    pub(crate) fn arguments(&self) -> Vec<&str> {
        let deployment = self.names("Deployment")[0];
        self.get("Deployment", deployment)["spec"]["template"]["spec"]["containers"][0]["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect()
    }

    /// Pod of the operator.
    pub(crate) fn operator(&self) -> &Value {
        &self.get("Deployment", RELEASE)["spec"]["template"]["spec"]
    }

    /// Pod of the NATS server.
    pub(crate) fn nats(&self) -> &Value {
        &self.get("StatefulSet", "sluice-nats")["spec"]["template"]["spec"]
    }
}

/// Every pod that an object makes or is.
pub(crate) fn pod(object: &Value) -> Option<&Value> {
    match object["kind"].as_str() {
        Some("Pod") => Some(&object["spec"]),
        Some("Deployment" | "StatefulSet") => object.pointer("/spec/template/spec"),
        _ => None,
    }
}
