//! Bounds, defaults and ports on which operator and pods agree: value, unit, and why it is what it
//! is. A bound that one program alone keeps stands in that program.

use std::time::Duration;

/// Longest channel name, bytes. Children add suffixes of up to 11 bytes and a label value ends at
/// 63.
pub const CHANNEL_NAME_BYTES: usize = 48;
/// Longest stream name that is derived (`sse_<63>_<48>_<8>`), bytes; nats-server allows 255.
pub const DERIVED_STREAM_NAME_BYTES: usize = 125;
/// Longest topic or topic filter, bytes. nats-server's protocol line ends at 4,096.
pub const TOPIC_BYTES: usize = 256;
/// Topic filters on one subscription. Each is matched against each event the subscriber passes.
pub const FILTERS_PER_SUBSCRIBER: usize = 32;
/// Longest cursor, bytes: `Last-Event-ID` over 128 bytes is no longer CORS-safelisted (Fetch
/// standard, "CORS-safelisted request-header"), so no cursor is longer.
pub const CURSOR_BYTES: usize = 128;
/// Longest `Event-Name`, bytes.
pub const EVENT_NAME_BYTES: usize = 128;
/// Largest `maxMessageSize`, bytes: nats-server's default `max_payload`.
pub const MESSAGE_BYTES: u64 = 1024 * 1024;
/// Most JetStream subjects of one channel.
pub const SUBJECTS_PER_CHANNEL: usize = 16;

/// Default for `delivery.heartbeat`: under the 30–60 s idle limits of common proxies.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// Default for `delivery.retry.min`.
pub const RETRY_MIN: Duration = Duration::from_secs(1);
/// Default for `delivery.retry.max`.
pub const RETRY_MAX: Duration = Duration::from_secs(5);
/// Default for `delivery.maxConnectionAge`.
pub const MAX_CONNECTION_AGE: Duration = Duration::from_secs(3600);
/// Default for `delivery.writeTimeout`: no progress on a socket for this long ends the stream.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Default for `delivery.maxConnectionsPerPod`.
pub const MAX_CONNECTIONS: u32 = 50_000;
/// Default for `delivery.cache`, bytes.
pub const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// Default for `stream.maxMessageSize`, bytes.
pub const MAX_MESSAGE_SIZE: u64 = 64 * 1024;
/// Default for `delivery.cors.maxAge`.
pub const CORS_MAX_AGE: Duration = Duration::from_secs(3600);

/// Longest heartbeat, write timeout and reconnection time: what is longer hides a dead connection.
pub const LONGEST: Duration = Duration::from_secs(5 * 60);
/// Longest `delivery.maxConnectionAge` and `delivery.cors.maxAge`.
pub const DAY: Duration = Duration::from_secs(24 * 3600);
/// Greatest `delivery.maxConnectionsPerPod`: more streams than one host's memory has room for.
pub const MOST_CONNECTIONS: u32 = 1_000_000;
/// Least `delivery.cache`, bytes: history is read in segments of that size.
pub const LEAST_CACHE_BYTES: u64 = 1024 * 1024;
/// Greatest `delivery.cache`, bytes.
pub const MOST_CACHE_BYTES: u64 = 64 * 1024 * 1024 * 1024;
/// Most origins in `delivery.cors.allowedOrigins`: each request is compared with all of them.
pub const ORIGINS: usize = 64;

/// Port of the data plane's public listener in a pod.
pub const HTTP_PORT: u16 = 8080;
/// Port of the data plane's admin listener in a pod (probes, metrics, debug); never routed.
pub const ADMIN_PORT: u16 = 9090;
