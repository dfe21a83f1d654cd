//! The one table: product beside floor.

/// One line of the table.
struct Row {
    label: String,
    values: [Option<f64>; 2],
    digits: usize,
}

/// Collects figures in the order in which their rows are first named.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Notes a figure of one side (0 = product, 1 = floor).
    pub(crate) fn add(&mut self, label: &str, side: usize, value: f64, digits: usize) {
        let found = self.rows.iter().position(|r| r.label == label);
        let index = found.unwrap_or_else(|| {
            self.rows.push(Row { label: label.to_owned(), values: [None; 2], digits });
            self.rows.len() - 1
        });
        self.rows[index].values[side] = Some(value);
    }

    /// Writes the table to standard output.
    pub(crate) fn print(&self) {
        let width = self.rows.iter().map(|r| r.label.chars().count()).max().unwrap_or(0);
        println!("\n{:width$} | {:>11} | {:>11} | {:>7}", "measure", "sluice", "floor", "ratio");
        println!("{:-<width$}-|-{:->11}-|-{:->11}-|-{:->7}", "", "", "", "");
        for row in &self.rows {
            let cell = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |v| grouped(v, row.digits));
            let ratio = match row.values {
                [Some(product), Some(floor)] if floor > 0.0 => format!("{:.2}", product / floor),
                _ => "–".to_owned(),
            };
            println!("{:width$} | {:>11} | {:>11} | {ratio:>7}", row.label, cell(row.values[0]), cell(row.values[1]));
        }
    }
}

/// The number with commas between thousands.
fn grouped(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.find('.').map_or((text.as_str(), ""), |dot| text.split_at(dot));
    let mut out = String::new();
    for (i, c) in whole.char_indices() {
        if i > 0 && c.is_ascii_digit() && (whole.len() - i) % 3 == 0 && whole[..i].ends_with(|p: char| p.is_ascii_digit()) {
            out.push(',');
        }
        out.push(c);
    }
    out + rest
}
