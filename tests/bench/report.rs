//! The one table: product beside floor and peer.

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

    /// Writes the table to standard output, as Markdown.
    pub(crate) fn print(&self) {
        let width = self.rows.iter().map(|r| r.label.chars().count()).max().unwrap_or(0);
        let [product, floor, peer] = SIDES;
        println!(
            "\n| {:width$} | {product:>11} | {floor:>11} | {peer:>16} | × {floor:<5} | × peer |",
            "measure"
        );
        println!(
            "|-{:-<width$}-|-{:->11}-|-{:->11}-|-{:->16}-|---------|--------|",
            "", "", "", ""
        );
        for row in &self.rows {
            let cell = |value: Option<f64>| {
                value.map_or_else(|| "–".to_owned(), |v| grouped(v, row.digits))
            };
            let ratio = |other: Option<f64>| match (row.values[0], other) {
                (Some(product), Some(other)) if other > 0.0 => format!("{:.2}", product / other),
                _ => "–".to_owned(),
            };
            let [product, floor, peer] = row.values;
            println!(
                "| {:width$} | {:>11} | {:>11} | {:>16} | {:>7} | {:>6} |",
                row.label,
                cell(product),
                cell(floor),
                cell(peer),
                ratio(floor),
                ratio(peer)
            );
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
