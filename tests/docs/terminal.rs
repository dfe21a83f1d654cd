//! A terminal in which a reader types one command of a page.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use sluice_tests::{
    docs,
    process::{Process, tool},
    sse::{Event, Item, Parser},
};

/// Longest until a command shows or does what it should.
const LIMIT: Duration = Duration::from_secs(60);
/// Longest until `make run` serves: seconds when the programs are built, but cargo may have to wait
/// for another of its kind.
const START_LIMIT: Duration = Duration::from_secs(240);

/// One command, as `sh` runs it in the checkout.
pub(crate) struct Terminal {
    command: String,
    process: Process,
}

impl Terminal {
    /// Types a command, with these variables beside those of the test.
    pub(crate) fn open(command: &str, variables: &[(String, String)]) -> Self {
        println!("$ {command}");
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(docs::root());
        // A reader's shell knows nothing of the cargo and make that run this test.
        for (name, _) in std::env::vars() {
            let is_of_cargo =
                name.starts_with("CARGO_") && name != "CARGO_HOME" && name != "CARGO_TARGET_DIR";
            if is_of_cargo
                || ["CARGO", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"]
                    .contains(&name.as_str())
            {
                shell.env_remove(name);
            }
        }
        shell.env("SLUICE_TOOLS", tool("nats-server").parent().expect("the tools' folder"));
        shell.envs(variables.iter().map(|(name, value)| (name, value)));
        Self { command: command.to_owned(), process: Process::spawn("terminal", shell) }
    }

    fn screen(&self) -> String {
        format!("$ {}\n{}{}", self.command, self.process.stdout(), self.process.stderr())
    }

    /// What it has printed so far.
    pub(crate) fn printed(&self) -> String {
        self.process.stdout()
    }

    /// Waits until it shows `text`.
    pub(crate) async fn shows(&mut self, text: &str) {
        self.until(text, LIMIT, |screen| screen.contains(text).then_some(())).await;
    }

    /// Waits until `make run` serves `orders`.
    pub(crate) async fn serves(&mut self) {
        self.until("orders is served", START_LIMIT, |screen| {
            screen.contains("orders: Ready=True").then_some(())
        })
        .await;
    }

    /// Waits until an event stream holds what `test` wants of its events so far.
    pub(crate) async fn events(
        &mut self,
        what: &str,
        test: impl Fn(&[Event]) -> bool,
    ) -> Vec<Event> {
        self.until(what, LIMIT, |screen| Some(events(screen)).filter(|events| test(events))).await
    }

    async fn until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        test: impl Fn(&str) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.process.ended();
            if let Some(found) = test(&self.process.stdout()) {
                return found;
            }
            assert!(ended.is_none(), "it ended with {ended:?} before {what:?}\n{}", self.screen());
            assert!(Instant::now() < deadline, "not within {limit:?}: {what:?}\n{}", self.screen());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for a command that ends by itself and well; what it printed.
    pub(crate) async fn output(mut self) -> String {
        let status = self
            .process
            .wait(LIMIT)
            .await
            .unwrap_or_else(|| panic!("it does not end\n{}", self.screen()));
        assert!(status.success(), "{status}\n{}", self.screen());
        self.process.stdout()
    }

    /// Ctrl-C; waits for the end.
    pub(crate) async fn interrupt(mut self) {
        self.process.signal(Signal::INT);
        assert!(
            self.process.wait(LIMIT).await.is_some(),
            "Ctrl-C does not end it\n{}",
            self.screen()
        );
    }
}

/// The events of a stream that was read so far.
pub(crate) fn events(text: &str) -> Vec<Event> {
    let mut parser = Parser::new();
    parser.push(text.as_bytes());
    std::iter::from_fn(|| parser.pop())
        .filter_map(|item| if let Item::Event(event) = item { Some(event) } else { None })
        .collect()
}

/// The publishers' among them: data of each.
pub(crate) fn data(events: &[Event]) -> Vec<&str> {
    events
        .iter()
        .filter(|event| !event.name.starts_with("channel."))
        .map(|event| event.data.as_str())
        .collect()
}
