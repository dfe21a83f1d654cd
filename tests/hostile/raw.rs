//! A publisher in plain bytes: no client library would send what these tests do.

use serde_json::json;
use sluice_tests::nats::NatsServer;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// A publisher in plain bytes: no client library would send what these tests do.
pub(crate) struct Raw(BufReader<TcpStream>);

/// A message as it goes to the server.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) subject: Vec<u8>,
    /// Where the store's acknowledgement goes.
    pub(crate) reply: Option<Vec<u8>>,
    /// `None` = published without a block of headers.
    pub(crate) block: Option<Vec<u8>>,
    pub(crate) payload: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(nats: &NatsServer) -> Self {
        let address = nats.url().replace("nats://", "");
        let mut raw = Self(BufReader::new(TcpStream::connect(address).await.unwrap()));
        let options = json!({"verbose": false, "pedantic": false, "headers": true, "protocol": 1, "lang": "test", "version": "0"});
        raw.0.write_all(format!("CONNECT {options}\r\n").as_bytes()).await.unwrap();
        raw.settle().await;
        raw
    }

    /// Sends `messages`, and waits until the server has parsed all of them.
    ///
    /// A message with a CR in its subject goes alone: where one read of nats-server's ends within a
    /// line that has a CR, it takes away the last byte that it has read, whichever that is.
    pub(crate) async fn publish(&mut self, messages: &[Sent]) {
        for run in
            messages.chunk_by(|a, b| !a.subject.contains(&b'\r') && !b.subject.contains(&b'\r'))
        {
            self.write(run).await;
        }
    }

    async fn write(&mut self, messages: &[Sent]) {
        let mut wire = Vec::new();
        for Sent { subject, reply, block, payload } in messages {
            let total = block.as_ref().map_or(0, Vec::len) + payload.len();
            wire.extend(if block.is_some() { &b"HPUB "[..] } else { b"PUB " });
            wire.extend(subject);
            if let Some(reply) = reply {
                wire.push(b' ');
                wire.extend(reply);
            }
            if let Some(block) = block {
                wire.extend(format!(" {}", block.len()).bytes());
            }
            wire.extend(format!(" {total}\r\n").bytes());
            wire.extend(block.iter().flatten());
            wire.extend(payload);
            wire.extend(b"\r\n");
        }
        self.0.write_all(&wire).await.unwrap();
        self.settle().await;
    }

    async fn settle(&mut self) {
        self.0.write_all(b"PING\r\n").await.unwrap();
        let mut line = String::new();
        while line != "PONG\r\n" {
            assert!(!line.starts_with("-ERR"), "the server does not take it: {line}");
            line.clear();
            assert!(self.0.read_line(&mut line).await.unwrap() > 0, "the server hung up");
        }
    }
}
