//! What the streams of all channels reserve.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Error, Owner, Streams, fields};

/// Most streams that are looked at; an account with more has other bounds.
const STREAMS: usize = 100_000;

/// What a stream with an owner's mark reserves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub(crate) stream: String,
    pub(crate) owner: Owner,
    /// `None`: as many as come.
    pub(crate) max_bytes: Option<u64>,
    pub(crate) replicas: usize,
    /// What it holds.
    pub(crate) stored: u64,
}

impl Reserved {
    /// Bytes in all copies; of a stream without a limit those that it holds.
    pub(crate) fn bytes(&self) -> u64 {
        let replicas = u64::try_from(self.replicas).unwrap_or(u64::MAX);
        self.max_bytes.unwrap_or(self.stored).saturating_mul(replicas)
    }
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    total: usize,
    #[serde(default)]
    streams: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    config: Map<String, Value>,
    state: State,
}

#[derive(Deserialize)]
struct State {
    bytes: u64,
}

impl Streams {
    /// Every stream of the account that bears the mark of an owner.
    ///
    /// # Errors
    /// [`Error`] when NATS cannot be asked.
    pub(crate) async fn reserved(&self) -> Result<Vec<Reserved>, Error> {
        let (mut all, mut offset) = (Vec::new(), 0);
        while offset < STREAMS {
            let page: Page = self.server.request("STREAM.LIST", &json!({"offset": offset})).await?;
            offset += page.streams.len();
            let is_last = page.streams.is_empty() || offset >= page.total;
            all.extend(page.streams.into_iter().filter_map(reserved));
            if is_last {
                break;
            }
        }
        Ok(all)
    }
}

fn reserved(Listed { config, state }: Listed) -> Option<Reserved> {
    let owner = fields::owner(&config)?;
    let max_bytes = config.get("max_bytes").and_then(Value::as_u64).filter(|bytes| *bytes > 0);
    Some(Reserved {
        stream: config.get("name")?.as_str()?.to_owned(),
        owner,
        max_bytes,
        replicas: fields::replicas(&config),
        stored: state.bytes,
    })
}
