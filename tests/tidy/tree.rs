//! The project's own files: everything in the tree but build output, fetched tools, local data and
//! version control.

use std::path::{Path, PathBuf};

/// A file of the project.
pub(crate) struct File {
    /// Path from the root, with `/`.
    pub(crate) path: String,
    /// Its text; files that are not UTF-8 are left out of the tree.
    pub(crate) text: String,
}

impl File {
    /// Whether the path ends with `.extension`.
    pub(crate) fn is(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|e| e == extension)
    }

    /// Rust code that is no test: lines before the unit tests, numbered from 1. Empty for files
    /// that hold tests only.
    pub(crate) fn product_lines(&self) -> Vec<(usize, &str)> {
        let tests_only = self.path.ends_with("/tests.rs") || self.path.contains("/tests/");
        let is_product = self.is("rs") && !tests_only;
        let lines = self.text.lines().enumerate().map(|(i, line)| (i + 1, line));
        if is_product {
            lines.take_while(|(_, line)| *line != "#[cfg(test)]").collect()
        } else {
            Vec::new()
        }
    }

    /// [`Self::product_lines`] without comments, so that prose may name what code may not.
    pub(crate) fn product_code(&self) -> Vec<(usize, &str)> {
        self.product_lines()
            .into_iter()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .collect()
    }
}

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests crate lies in the workspace")
        .to_path_buf()
}

/// All text files of the project, by path.
pub(crate) fn files() -> Vec<File> {
    let root = root();
    let file = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).ok()?;
        let path =
            path.strip_prefix(&root).expect("below the root").to_string_lossy().replace('\\', "/");
        Some(File { path, text })
    };
    let mut found: Vec<File> =
        sluice_tests::docs::files(&root).into_iter().filter_map(file).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 20, "only {} files found below {}", found.len(), root.display());
    found
}

/// Rust files of the three crates that ship.
pub(crate) fn product() -> Vec<File> {
    let ships = |path: &str| {
        ["channel/src/", "operator/src/", "dataplane/src/"]
            .iter()
            .any(|crate_| path.starts_with(crate_))
    };
    files().into_iter().filter(|f| f.is("rs") && ships(&f.path)).collect()
}

/// One file's text.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Fails with every finding on its own line, below what the rule is and how to keep it.
pub(crate) fn report(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}\n  {}\n", findings.join("\n  "));
}
