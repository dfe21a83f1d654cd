//! How the modules of a crate depend on each other: no circles, and the data plane and the operator
//! in layers.
//!
//! A module is a node together with its children, so that a parent may pass on what a child defines
//! and a child may use what its parent holds; what is compared are siblings, on every level.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};

use crate::tree;

/// Layers of the data plane's modules, from what knows nothing to what knows all: a module imports
/// only from the lines before its own.
const DATAPLANE: &[&[&str]] = &[
    &["budget", "cgroup", "config_dir", "frame", "limits", "peer", "phase", "pulse", "throttle"],
    &["admission", "source"],
    &["log"],
    &["metrics"],
    &["channel"],
    &["registry"],
    &["state", "subscriber"],
    &["fanout"],
    &["server"],
    &["admin"],
    &["pod"],
    &["args", "fuzz"],
];

/// The same for the operator.
const OPERATOR: &[&[&str]] = &[
    &["crd", "english", "kube_error", "metrics", "nats"],
    &["leader", "stream", "tenancy"],
    &["admin"],
    &["controller"],
    &["args"],
    &["check", "local", "permissions"],
];

/// `operator/src/crd/text.rs` → `["crd", "text"]`; the roots of a crate are `[]`.
fn module_of(path: &str, crate_: &str) -> Option<Vec<String>> {
    let inside = path.strip_prefix(&format!("{crate_}/src/"))?.strip_suffix(".rs")?;
    let parts: Vec<_> = inside.split('/').map(str::to_owned).collect();
    let is_root = parts.len() == 1 && (parts[0] == "lib" || parts[0] == "main");
    Some(if is_root { Vec::new() } else { parts })
}

/// Collects the paths that a file names, apart from those of its tests.
#[derive(Default)]
struct Paths {
    found: Vec<Vec<String>>,
}

impl Paths {
    fn tree(&mut self, tree: &syn::UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.tree(&path.tree, &with(&path.ident)),
            syn::UseTree::Name(name) => self.found.push(with(&name.ident)),
            syn::UseTree::Rename(rename) => self.found.push(with(&rename.ident)),
            syn::UseTree::Glob(_) => self.found.push(before.to_vec()),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.tree(tree, before));
            }
        }
    }

    /// Macros are not parsed: of their tokens, what follows `crate ::` and `super ::` is a path.
    fn tokens(&mut self, tokens: &str) {
        let words: Vec<_> = tokens.split_whitespace().collect();
        for (at, word) in words.iter().enumerate() {
            if !["crate", "super"].contains(word) {
                continue;
            }
            let mut path = vec![(*word).to_owned()];
            for pair in words[at + 1..].chunks_exact(2) {
                if pair[0] != "::" {
                    break;
                }
                path.push(pair[1].to_owned());
            }
            self.found.push(path);
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|word| word == "test")
    })
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.tree(&item.tree, &[]);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.found.push(path.segments.iter().map(|s| s.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        self.tokens(&invocation.tokens.to_string());
        visit::visit_macro(self, invocation);
    }
}

/// Where a path of module `from` leads, from the root of the crate; `None` out of the crate.
fn absolute(
    path: &[String],
    from: &[String],
    is_module: &dyn Fn(&[String]) -> bool,
) -> Option<Vec<String>> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" => Some([from, rest].concat()),
        "super" => {
            let (_, parent) = from.split_last()?;
            if rest.first().is_some_and(|word| word == "super") {
                return absolute(rest, parent, is_module);
            }
            Some([parent, rest].concat())
        }
        // A child is named without `self`.
        _ => Some([from, path].concat()).filter(|child| is_module(&child[..=from.len()])),
    }
}

/// `(module, module that it imports from)`.
type Imports = BTreeSet<(Vec<String>, Vec<String>)>;

fn imports(crate_: &str) -> Imports {
    let files: BTreeMap<Vec<String>, tree::File> = tree::product()
        .into_iter()
        .filter(|file| file.path.starts_with(&format!("{crate_}/src/")))
        .filter(|file| !file.path.ends_with("/tests.rs") && !file.path.contains("/tests/"))
        .filter_map(|file| Some((module_of(&file.path, crate_)?, file)))
        .collect();
    assert!(files.len() > 5, "{crate_}: only {} modules found", files.len());
    let mut found = Imports::new();
    for (module, file) in &files {
        let parsed = syn::parse_file(&file.text).unwrap_or_else(|e| panic!("{}: {e}", file.path));
        let mut paths = Paths::default();
        paths.visit_file(&parsed);
        for path in paths.found {
            let Some(path) = absolute(&path, module, &|path| files.contains_key(path)) else {
                continue;
            };
            let holder =
                (0..=path.len()).rev().map(|n| &path[..n]).find(|p| files.contains_key(*p));
            if let Some(holder) = holder.filter(|holder| !holder.is_empty() && *holder != module) {
                found.insert((module.clone(), holder.to_vec()));
            }
        }
    }
    assert!(found.len() > 5, "{crate_}: only {} imports found", found.len());
    found
}

/// Names of siblings and the files that make one import from the other, for each parent.
type Siblings = BTreeMap<Vec<String>, BTreeMap<String, BTreeMap<String, String>>>;

/// Imports between siblings: below what the two paths share, the names where they part.
fn siblings(imports: &Imports) -> Siblings {
    let mut levels = Siblings::new();
    for (from, to) in imports {
        let shared = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        if let (Some(a), Some(b)) = (from.get(shared), to.get(shared)) {
            let level = levels.entry(from[..shared].to_vec()).or_default();
            let example = format!("{} uses {}", from.join("/"), to.join("/"));
            level.entry(a.clone()).or_default().entry(b.clone()).or_insert(example);
        }
    }
    levels
}

/// Takes away modules that import none of those left, or that none of those left imports, until
/// nothing changes; what stays is part of a circle, or lies between two.
fn circles(level: &BTreeMap<String, BTreeMap<String, String>>) -> Vec<String> {
    let mut left = level.clone();
    loop {
        let names: BTreeSet<_> = left.keys().cloned().collect();
        let used: BTreeSet<_> = left.values().flat_map(BTreeMap::keys).cloned().collect();
        let before = left.len();
        for uses in left.values_mut() {
            uses.retain(|name, _| names.contains(name));
        }
        left.retain(|name, uses| !uses.is_empty() && used.contains(name));
        if left.len() == before {
            return left.into_values().flat_map(BTreeMap::into_values).collect();
        }
    }
}

#[test]
fn modules_form_no_circle() {
    let mut findings = Vec::new();
    for crate_ in ["channel", "dataplane", "operator"] {
        for level in siblings(&imports(crate_)).values() {
            findings.extend(circles(level).into_iter().map(|import| format!("{crate_}: {import}")));
        }
    }
    tree::report(
        "Modules beside each other form a circle: move what both need to a module below them.",
        &findings,
    );
}

#[test]
fn modules_import_only_from_layers_below() {
    let mut findings = Vec::new();
    for (crate_, layers) in [("dataplane", DATAPLANE), ("operator", OPERATOR)] {
        let layer = |name: &str| layers.iter().position(|layer| layer.contains(&name));
        let all = imports(crate_);
        let names: BTreeSet<_> =
            all.iter().flat_map(|(a, b)| [a, b]).filter_map(|m| m.first()).collect();
        for name in &names {
            if layer(name).is_none() {
                findings.push(format!("{crate_}: {name} has no layer: add it to the list"));
            }
        }
        for name in layers.iter().flat_map(|layer| layer.iter()) {
            if !names.iter().any(|known| known == name) {
                findings.push(format!("{crate_}: {name} has a layer and is no module"));
            }
        }
        for (a, uses) in siblings(&all).remove(&Vec::new()).unwrap_or_default() {
            for (b, example) in uses {
                if layer(&a).zip(layer(&b)).is_some_and(|(a, b)| a <= b) {
                    findings.push(format!("{crate_}: {example}, which is not in a layer below"));
                }
            }
        }
    }
    tree::report("A module imports only from the layers below its own.", &findings);
}
