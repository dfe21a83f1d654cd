//! The table of a run: a row for each kind of fault.

use std::{collections::BTreeMap, time::Duration};

use crate::soak::{Counts, Snapshot, Soak};

/// What happened while faults of one kind lasted.
#[derive(Debug, Default)]
struct Row {
    times: u64,
    /// From when to when.
    spans: Vec<(Duration, Duration)>,
}

/// Rows by kind.
#[derive(Debug, Default)]
pub(crate) struct Rows(BTreeMap<&'static str, Row>);

const HEAD: [&str; 8] = [
    "fault",
    "times",
    "acknowledged",
    "received",
    "resumes",
    "gaps expired",
    "gaps deleted",
    "longest pause, s",
];

impl Rows {
    /// A fault of this kind is over; `ended` may lie in the future, as long as what it did shows.
    pub(crate) fn add(&mut self, kind: &'static str, began: Duration, ended: Duration) {
        let row = self.0.entry(kind).or_default();
        row.times += 1;
        row.spans.push((began, ended));
    }

    /// The table, with a last row for the whole run.
    pub(crate) fn table(&self, soak: &Soak) -> String {
        let cells = |name: &str, times: String, sums: Snapshot, pause: Duration| {
            let Snapshot { acknowledged, received, resumes, expired, deleted } = sums;
            let numbers =
                [acknowledged, received, resumes, expired, deleted].map(|n| n.to_string());
            let mut cells = vec![name.to_owned(), times];
            cells.extend(numbers);
            cells.push(format!("{:.1}", pause.as_secs_f64()));
            cells
        };
        let mut lines = vec![HEAD.map(str::to_owned).to_vec()];
        for (kind, Row { times, spans }) in &self.0 {
            let pause = spans.iter().map(|(from, to)| soak.longest_pause(*from, *to)).max();
            let sums = spans.iter().map(|(from, to)| soak.between(*from, *to)).sum();
            lines.push(cells(kind, times.to_string(), sums, pause.unwrap_or_default()));
        }
        let all = soak.longest_pause(Duration::ZERO, Duration::MAX);
        lines.push(cells("the whole run", String::new(), soak.snapshot(), all));
        let widths: Vec<usize> = (0..HEAD.len())
            .map(|i| lines.iter().map(|line| line[i].len()).max().unwrap_or_default())
            .collect();
        let mut text = String::new();
        for line in lines {
            for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
                text +=
                    &if i == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") };
            }
            text.push('\n');
        }
        text
    }
}

/// The other numbers, a line for each subject.
pub(crate) fn numbers(soak: &Soak) -> String {
    use std::sync::atomic::Ordering::Relaxed;
    let Counts { sessions, pages, degraded, answers, closes, .. } = &soak.counts;
    let answers = answers.lock().unwrap();
    let answers = answers.iter().map(|((what, how), count)| format!("{what} {how}: {count}"));
    let closes = closes.lock().unwrap();
    let closes = closes.iter().map(|(reason, count)| format!("{reason}: {count}"));
    format!(
        "sessions {}, pages {}, channel.degraded {}\nanswers: {}\ncloses: {}\n",
        sessions.load(Relaxed),
        pages.load(Relaxed),
        degraded.load(Relaxed),
        answers.collect::<Vec<_>>().join(", "),
        closes.collect::<Vec<_>>().join(", ")
    )
}
