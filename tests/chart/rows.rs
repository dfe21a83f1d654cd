//! Values, and what must be true of what they render.

mod nats;
mod network;
mod operator;
mod rights;

use serde_json::{Value, json};

use crate::helm::Objects;

/// One set of values.
pub(crate) struct Row {
    /// What it is about.
    pub(crate) what: &'static str,
    /// The values.
    pub(crate) values: Value,
    /// What must be true.
    pub(crate) facts: fn(&Objects),
}

/// A row whose values name NATS servers, since somewhere events must be kept.
fn row(what: &'static str, mut values: Value, facts: fn(&Objects)) -> Row {
    if values.get("natsServer").is_none() && values.get("nats").is_none() {
        values["nats"] = json!({"servers": ["nats://nats.nats.svc:4222"]});
    }
    Row { what, values, facts }
}

/// The table.
pub(crate) fn table() -> Vec<Row> {
    [operator::rows(), rights::rows(), nats::rows(), network::rows()]
        .into_iter()
        .flatten()
        .collect()
}
