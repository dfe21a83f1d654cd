//! The chunked transfer coding (RFC 9112 section 7.1), as far as an endless response needs it.

use bytes::{Bytes, BytesMut};

/// What ends a chunk.
pub(super) const END: Bytes = Bytes::from_static(b"\r\n");
/// The last chunk and the empty trailer section: the end of the body.
pub(super) const LAST: Bytes = Bytes::from_static(b"0\r\n\r\n");

/// Longest head of a chunk: 16 hexadecimal digits and a line end.
const HEAD_BYTES: usize = 18;

/// What begins a chunk of `length` bytes, which must not be 0: that would end the body.
pub(super) fn head(length: usize) -> Bytes {
    let mut text = [0; HEAD_BYTES];
    let mut at = HEAD_BYTES;
    let mut put = |byte| {
        at -= 1;
        text[at] = byte;
    };
    put(b'\n');
    put(b'\r');
    let mut rest = length;
    loop {
        put(b"0123456789abcdef"[rest & 15]);
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    Bytes::copy_from_slice(&text[at..])
}

/// Bytes of a chunk with `length` bytes in it.
pub(super) fn length(length: usize) -> usize {
    head(length).len() + length + END.len()
}

/// One chunk of `parts` in one buffer.
pub(super) fn whole(parts: &[Bytes]) -> Bytes {
    let length = parts.iter().map(Bytes::len).sum();
    let mut all = BytesMut::with_capacity(length + HEAD_BYTES + END.len());
    all.extend_from_slice(&head(length));
    parts.iter().for_each(|part| all.extend_from_slice(part));
    all.extend_from_slice(&END);
    all.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden() {
        assert_eq!(
            whole(&[Bytes::from_static(b"abc"), Bytes::from_static(b"defghijklmnopqrs")]),
            "13\r\nabcdefghijklmnopqrs\r\n"
        );
        assert_eq!(length(19), "13\r\nabcdefghijklmnopqrs\r\n".len());
        assert_eq!(head(1), "1\r\n");
        assert_eq!(head(0x10_0000), "100000\r\n");
        assert_eq!(head(usize::MAX), format!("{:x}\r\n", usize::MAX));
    }

    proptest! {
        #[test]
        fn heads_read_back(length in 1usize..) {
            let head = head(length);
            let text = std::str::from_utf8(&head).unwrap().strip_suffix("\r\n").unwrap();
            prop_assert_eq!(usize::from_str_radix(text, 16).unwrap(), length);
        }
    }
}
