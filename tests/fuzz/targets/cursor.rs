//! Cursors: exactly the canonical texts are taken, and each is written back as it was.

use rand::{Rng, rngs::StdRng};
use sluice_channel::{Cursor, Epoch, limits};

use crate::engine::Target;

pub(crate) const TARGET: Target = Target {
    name: "cursor",
    check,
    valid,
    words: &["-", "0", "00", "ffffffff", "F", "+", " ", "١"],
};

fn valid(rng: &mut StdRng) -> Vec<u8> {
    // As many digits as there may be, each length as likely as the others.
    let sequence = rng.random::<u64>() >> rng.random_range(0..64);
    Cursor::new(Epoch::from_bits(rng.random()), sequence).to_string().into_bytes()
}

/// The grammar, by hand: 8 lower-case hexadecimal digits, `-`, a decimal number of 64 bits without
/// leading zeros.
fn reference(text: &[u8]) -> Option<(u32, u64)> {
    let (epoch, rest) = text.split_at_checked(8)?;
    let bits = epoch.iter().try_fold(0u32, |bits, byte| {
        let digit = b"0123456789abcdef".iter().position(|digit| digit == byte)?;
        Some(bits << 4 | digit as u32)
    })?;
    let sequence = match rest {
        b"-0" => 0,
        [b'-', b'1'..=b'9', ..] => rest[1..].iter().try_fold(0u64, |number, byte| {
            let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
            number.checked_mul(10)?.checked_add(u64::from(digit))
        })?,
        _ => return None,
    };
    Some((bits, sequence))
}

fn check(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let read = text.parse::<Cursor>().ok();
    assert_eq!(read.map(|c| (c.epoch.bits(), c.sequence)), reference(text.as_bytes()), "{text:?}");
    let Some(cursor) = read else { return false };
    assert_eq!(cursor.to_string(), text, "one place has one text");
    assert!(text.len() <= limits::CURSOR_BYTES);
    let mut appended = b"id: ".to_vec();
    cursor.append_to(&mut appended);
    assert_eq!(appended.strip_prefix(b"id: "), Some(text.as_bytes()), "both ways to write it");
    true
}
