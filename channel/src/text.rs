//! Durations and sizes as people write them: one grammar for manifests and command lines.

use std::time::Duration;

/// A text that is no duration or no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not in the grammar of Gateway API durations (GEP-2257).
    #[error("{0:?} must be a duration like 15s, 500ms or 1h30m")]
    Duration(String),
    /// Not a whole quantity of bytes.
    #[error("{0:?} must be a size like 64Ki, 1Gi or 1048576")]
    Size(String),
    /// A word that names no level.
    #[error("{0:?} is no level: use off, error, warn, info, debug or trace, or target=level")]
    Level(String),
}

/// Reads a duration like `15s` or `1h30m` (GEP-2257: up to four numbers of up to five digits with
/// `h`, `m`, `s` or `ms`).
///
/// # Errors
/// [`Error::Duration`] when the text is outside the grammar.
pub fn duration(text: &str) -> Result<Duration, Error> {
    let fail = || Error::Duration(text.to_owned());
    let (mut rest, mut total, mut parts) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest
            .get(..digits)
            .filter(|_| (1..=5).contains(&digits))
            .and_then(|n| n.parse().ok())
            .ok_or_else(fail)?;
        rest = rest.get(digits..).ok_or_else(fail)?;
        let letters = rest.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, after) = rest.split_at_checked(letters).ok_or_else(fail)?;
        total += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return Err(fail()),
        };
        (rest, parts) = (after, parts + 1);
    }
    if (1..=4).contains(&parts) { Ok(total) } else { Err(fail()) }
}

/// Reads a number of bytes like `64Ki`, `1Gi` or `1048576`.
///
/// # Errors
/// [`Error::Size`] when the text is no whole quantity, or over 2^63 - 1.
pub fn size(text: &str) -> Result<u64, Error> {
    let fail = || Error::Size(text.to_owned());
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) =
        text.split_at_checked(digits).filter(|_| (1..=16).contains(&digits)).ok_or_else(fail)?;
    let unit: u64 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return Err(fail()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(fail)?;
    // JetStream keeps sizes in 64 bits with a sign.
    if bytes <= i64::MAX as u64 { Ok(bytes) } else { Err(fail()) }
}

/// Checks the directives of a log filter (`info,sluice_operator=debug`). A word alone is a target
/// of its own to the filter, so that `verbose` would log nothing at all: it must be a level, or
/// look like the path of a crate, with an underscore or a colon.
///
/// # Errors
/// [`Error::Level`] names the first word that is neither.
pub fn log_directives(text: &str) -> Result<(), Error> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| {
        LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word))
            || matches!(word.as_bytes(), [b'0'..=b'5'])
    };
    // A span's fields may hold commas; the filter's own parser knows those.
    for word in text.split(',').map(str::trim).filter(|word| !word.contains(['[', ']', '{', '}'])) {
        let wrong = match word.split_once('=') {
            Some((_, level)) => !is_level(level),
            None => !word.is_empty() && !is_level(word) && !word.contains(['_', ':']),
        };
        if wrong {
            return Err(Error::Level(word.to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("1h2m3s4ms"), Ok(Duration::from_millis(3_723_004)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("8760h"), Ok(Duration::from_secs(8760 * 3600)));
        for bad in [
            "",
            "15",
            "s",
            "1d",
            "1.5s",
            "-1s",
            "100000s",
            "1h1h1h1h1h",
            "1h ",
            "١s",
            "99999999999999999999h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("1Gi"), Ok(1 << 30));
        assert_eq!(size("64Ki"), Ok(65_536));
        assert_eq!(size("1048576"), Ok(1_048_576));
        assert_eq!(size("2G"), Ok(2_000_000_000));
        for bad in ["", "Gi", "1.5Gi", "-1", "1gi", "1Pi", "9999999999999999Ti", "1 Gi"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_filter_that_would_log_nothing_is_refused() {
        for good in [
            "info",
            "INFO",
            "off",
            "3",
            "info,sluice_operator=debug",
            "sluice_dataplane",
            "kube=trace, hyper=warn",
            "async_nats::connection",
            "info,[channel{name=orders,namespace=shop}]=debug",
            "info,",
        ] {
            assert_eq!(log_directives(good), Ok(()), "{good}");
        }
        for bad in ["verbose", "all", "warning", "information", "info,loud", "kube=noisy", "6"] {
            let said = log_directives(bad).unwrap_err().to_string();
            assert!(said.contains("debug or trace"), "{bad}: {said}");
        }
    }
}
