//! The fenced blocks of the project's Markdown, and the test that runs each of them.
//!
//! The line before a block says it:
//!
//! - `<!-- run: RUNNER NAME -->`: the runner takes the block by its name; `tests/tidy/blocks.rs`
//!   knows the runners
//! - `<!-- run: manifest -->`: a manifest of the resource; `tests/docs` and the cluster's tests
//!   read all of them
//! - `<!-- not run: REASON -->`
//!
//! A block in the language `text` is a picture or an output and needs no such line.

use std::path::{Path, PathBuf};

/// Folders that hold nothing of the project's own.
const NOT_OURS: &[&str] = &[".git", ".data", ".tools", "target", "node_modules", "vendor"];

/// What runs a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// A test program, which knows the block by this name.
    Run {
        /// One of those that `tests/tidy/blocks.rs` lists.
        runner: String,
        /// Name of the block, unique for its runner; empty for manifests.
        name: String,
    },
    /// Nothing, for this reason.
    NotRun(String),
    /// The line before the block says nothing.
    Missing,
}

/// One fenced block.
#[derive(Debug, Clone)]
pub struct Block {
    /// Path of the file from the root, with `/`.
    pub file: String,
    /// Line of the opening fence, from 1.
    pub line: usize,
    /// Language behind the opening fence; may be empty.
    pub language: String,
    /// What stands in it, without the indentation of its fence.
    pub text: String,
    /// What runs it.
    pub mark: Mark,
}

impl Block {
    /// `file:line`, for messages.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    /// The commands of a shell block: its lines without comments, with those that end in `\` joined
    /// to the next.
    pub fn commands(&self) -> Vec<String> {
        let joined = self.text.replace("\\\n", "");
        let lines = joined.lines().map(|line| line.split("  #").next().unwrap_or(line).trim());
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
    }

    /// Its one command.
    ///
    /// # Panics
    /// When it has another number of them.
    pub fn command(&self) -> String {
        let commands = self.commands();
        assert_eq!(commands.len(), 1, "{} should have one command: {commands:?}", self.place());
        commands.into_iter().next().unwrap_or_default()
    }
}

/// The blocks of a Markdown text.
pub fn blocks_of(file: &str, text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<(usize, Block)> = None;
    let mut before = "";
    for (number, line) in (1..).zip(text.lines()) {
        let inner = line.trim_start();
        let indent = line.len() - inner.len();
        match (&mut open, inner.strip_prefix("```")) {
            (None, Some(language)) => {
                let (language, mark) = (language.trim().to_owned(), mark(before.trim()));
                open = Some((
                    indent,
                    Block {
                        file: file.to_owned(),
                        line: number,
                        language,
                        text: String::new(),
                        mark,
                    },
                ));
            }
            (Some(_), Some(_)) => found.extend(open.take().map(|(_, block)| block)),
            (Some((indent, block)), None) => {
                block.text.push_str(line.get(*indent..).unwrap_or(inner));
                block.text.push('\n');
            }
            (None, None) => {}
        }
        before = line;
    }
    assert!(open.is_none(), "{file}: a block is not closed");
    found
}

fn mark(line: &str) -> Mark {
    let said = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")).unwrap_or("");
    if let Some(reason) = said.strip_prefix("not run: ") {
        Mark::NotRun(reason.to_owned())
    } else if let Some(run) = said.strip_prefix("run: ") {
        let (runner, name) = run.split_once(' ').unwrap_or((run, ""));
        Mark::Run { runner: runner.to_owned(), name: name.to_owned() }
    } else {
        Mark::Missing
    }
}

/// All files of the project below `root`, sorted: no build output, fetched tools, local data or
/// version control.
///
/// # Panics
/// When the tree cannot be read.
pub fn files(root: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        {
            let entry = entry.expect("a folder entry");
            if NOT_OURS.contains(&entry.file_name().to_string_lossy().as_ref()) {
                continue;
            }
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// The blocks of all Markdown files of the project, by path.
///
/// # Panics
/// When the tree cannot be read.
pub fn all() -> Vec<Block> {
    let root = root();
    let files = files(&root).into_iter().filter(|path| path.extension().is_some_and(|e| e == "md"));
    let read = |path: PathBuf| {
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        blocks_of(&path.strip_prefix(&root).expect("below the root").to_string_lossy(), &text)
    };
    files.flat_map(read).collect()
}

/// The block that `runner` knows as `name`.
///
/// # Panics
/// When no page has it, or more than one.
pub fn block(runner: &str, name: &str) -> Block {
    let wanted = Mark::Run { runner: runner.to_owned(), name: name.to_owned() };
    let mut found: Vec<Block> = all().into_iter().filter(|block| block.mark == wanted).collect();
    assert_eq!(found.len(), 1, "one page should have a block `<!-- run: {runner} {name} -->`");
    found.remove(0)
}

/// All manifests.
pub fn manifests() -> Vec<Block> {
    let is_one =
        |block: &Block| matches!(&block.mark, Mark::Run { runner, .. } if runner == "manifest");
    all().into_iter().filter(is_one).collect()
}

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_with_who_runs_them() {
        let text = "a\n\n<!-- run: local one -->\n```sh\n# why\ncurl a \\\n  b   # c\n\nd\n```\n\n- x\n   <!-- not run: no -->\n   ```yaml\n   a:\n     b\n   ```\n```\nz\n```\n";
        let found = blocks_of("a.md", text);
        let run = Mark::Run { runner: "local".to_owned(), name: "one".to_owned() };
        assert_eq!(
            found
                .iter()
                .map(|b| (b.line, b.language.as_str(), b.text.as_str()))
                .collect::<Vec<_>>(),
            [
                (4, "sh", "# why\ncurl a \\\n  b   # c\n\nd\n"),
                (14, "yaml", "a:\n  b\n"),
                (18, "", "z\n")
            ]
        );
        assert_eq!(
            found.iter().map(|b| b.mark.clone()).collect::<Vec<_>>(),
            [run, Mark::NotRun("no".to_owned()), Mark::Missing]
        );
        assert_eq!(found[0].commands(), ["curl a   b", "d"]);
    }
}
