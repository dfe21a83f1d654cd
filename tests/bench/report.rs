//! The one table: product beside floor and peer.

use std::fmt::Write as _;

use crate::side::SIDES;

/// One line of the table.
struct Row {
    label: String,
    values: [Option<f64>; SIDES.len()],
    digits: usize,
}

/// Collects figures in the order in which their rows are first named.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Notes a figure of one side (its number in [`SIDES`]).
    pub(crate) fn add(&mut self, label: &str, side: usize, value: f64, digits: usize) {
        let found = self.rows.iter().position(|r| r.label == label);
        let index = found.unwrap_or_else(|| {
            self.rows.push(Row { label: label.to_owned(), values: [None; SIDES.len()], digits });
            self.rows.len() - 1
        });
        self.rows[index].values[side] = Some(value);
    }

    /// Writes the table to standard output, as Markdown: the figures of all sides that were
    /// measured, then the product's as a multiple of each other one's.
    pub(crate) fn print(&self) {
        let measured: Vec<usize> = (0..SIDES.len())
            .filter(|side| self.rows.iter().any(|row| row.values[*side].is_some()))
            .collect();
        let others: Vec<usize> = measured.iter().copied().filter(|side| *side != 0).collect();
        let width = self.rows.iter().map(|r| r.label.chars().count()).max().unwrap_or(0);
        let mut lines = [format!("| {:width$} |", "measure"), format!("|-{:-<width$}-|", "")];
        for side in &measured {
            let _ = write!(lines[0], " {:>16} |", SIDES[*side]);
            let _ = write!(lines[1], "-{:->16}-|", "");
        }
        for side in &others {
            let _ = write!(lines[0], " {:>18} |", format!("× {}", SIDES[*side]));
            let _ = write!(lines[1], "-{:->18}-|", "");
        }
        println!("\n{}\n{}", lines[0], lines[1]);
        for row in &self.rows {
            let mut line = format!("| {:width$} |", row.label);
            for side in &measured {
                let cell = row.values[*side]
                    .map_or_else(|| "–".to_owned(), |value| grouped(value, row.digits));
                let _ = write!(line, " {cell:>16} |");
            }
            for side in &others {
                let ratio = match (row.values[0], row.values[*side]) {
                    (Some(product), Some(other)) if other > 0.0 => {
                        format!("{:.2}", product / other)
                    }
                    _ => "–".to_owned(),
                };
                let _ = write!(line, " {ratio:>18} |");
            }
            println!("{line}");
        }
    }
}

/// The number with commas between thousands.
fn grouped(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.find('.').map_or((text.as_str(), ""), |dot| text.split_at(dot));
    let mut out = String::new();
    for (i, c) in whole.char_indices() {
        if i > 0
            && c.is_ascii_digit()
            && (whole.len() - i) % 3 == 0
            && whole[..i].ends_with(|p: char| p.is_ascii_digit())
        {
            out.push(',');
        }
        out.push(c);
    }
    out + rest
}
