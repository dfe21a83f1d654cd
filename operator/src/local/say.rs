//! What local mode says on standard output.

use std::io::Write as _;

/// Says something to the user; a closed standard output is no error.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
