//! Files that another program reads while they change.

use std::path::Path;

/// Replaces a file in one step: the data plane never reads half of one.
pub(super) fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}
