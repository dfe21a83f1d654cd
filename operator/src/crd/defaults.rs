//! One source for the defaults of the schema and of this program.

use serde::de::{DeserializeOwned, value};

/// The value of a type whose every field has a default, as if `{}` had been read.
#[allow(
    clippy::expect_used,
    reason = "no input: a field without a default would fail every test of this crate"
)]
pub(super) fn of_nothing<T: DeserializeOwned>() -> T {
    let nothing = std::iter::empty::<(&str, &str)>();
    T::deserialize(value::MapDeserializer::<_, value::Error>::new(nothing))
        .expect("every field has a default")
}
