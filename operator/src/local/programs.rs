//! Finds the programs that local mode starts.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// First nats-server whose JetStream serves history as we need it.
const OLDEST: (u32, u32) = (2, 11);
/// How long `nats-server --version` may take.
const VERSION_LIMIT: Duration = Duration::from_secs(5);

/// A program that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not where it should be.
    #[error("{name} was not found ({looked}); {fix}")]
    Missing { name: &'static str, looked: String, fix: &'static str },
    /// It is there and of no use.
    #[error("{} cannot be used: {why}. nats-server 2.11 or newer is needed: name one with --nats-server", path.display())]
    Unusable { path: PathBuf, why: String },
}

/// The data plane: as given, or beside this program, or on PATH.
pub(super) fn dataplane(given: Option<&Path>) -> Result<PathBuf, Error> {
    const NAME: &str = "sluice-dataplane";
    let missing = |looked| Error::Missing {
        name: NAME,
        looked,
        fix: "build it with `cargo build -p sluice-dataplane`, or name it with --dataplane",
    };
    if let Some(path) = given {
        return if path.is_file() {
            Ok(path.to_owned())
        } else {
            Err(missing(format!("no file {}", path.display())))
        };
    }
    let beside = std::env::current_exe()
        .ok()
        .map(|exe| exe.with_file_name(NAME))
        .filter(|path| path.is_file());
    beside
        .or_else(|| on_path(NAME))
        .ok_or_else(|| missing("neither beside sluice-operator nor on PATH".to_owned()))
}

/// nats-server: as given, or the one on PATH if it is new enough, or the one that the project's
/// tools hold.
pub(super) async fn nats_server(given: Option<&Path>) -> Result<PathBuf, Error> {
    const NAME: &str = "nats-server";
    let missing = |looked| Error::Missing {
        name: NAME,
        looked,
        fix: "install nats-server 2.11 or newer, run `make tools`, or name a running one with --nats",
    };
    if let Some(path) = given {
        if !path.is_file() {
            return Err(missing(format!("no file {}", path.display())));
        }
        return usable(path)
            .await
            .map(|()| path.to_owned())
            .map_err(|why| Error::Unusable { path: path.to_owned(), why });
    }
    let mut looked = Vec::new();
    for path in on_path(NAME).into_iter().chain(in_tools(NAME)) {
        match usable(&path).await {
            Ok(()) => return Ok(path),
            Err(why) => looked.push(format!("{}: {why}", path.display())),
        }
    }
    looked.push("no other on PATH or in .tools/bin".to_owned());
    Err(missing(looked.join("; ")))
}

async fn usable(path: &Path) -> Result<(), String> {
    let run = tokio::process::Command::new(path).arg("--version").kill_on_drop(true).output();
    let output = tokio::time::timeout(VERSION_LIMIT, run)
        .await
        .map_err(|_| "it does not answer --version".to_owned())?;
    let text = String::from_utf8_lossy(&output.map_err(|e| e.to_string())?.stdout).into_owned();
    let version = text.split_whitespace().find_map(|word| word.strip_prefix('v'));
    let numbers = version
        .map(|v| v.split('.').map_while(|n| n.parse::<u32>().ok()).collect::<Vec<_>>())
        .unwrap_or_default();
    match numbers.as_slice() {
        [major, minor, ..] if (*major, *minor) >= OLDEST => Ok(()),
        [major, minor, ..] => Err(format!("it is version {major}.{minor}, older than 2.11")),
        _ => Err("it does not say its version".to_owned()),
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// `.tools/bin` below the working directory, or below a directory above this program (`target/…`).
fn in_tools(name: &str) -> Option<PathBuf> {
    let exe = std::env::current_exe().ok();
    let above = exe.iter().flat_map(|exe| exe.ancestors().skip(1)).map(Path::to_owned);
    std::iter::once(PathBuf::from("."))
        .chain(above)
        .map(|dir| dir.join(".tools/bin").join(name))
        .find(|file| file.is_file())
}
