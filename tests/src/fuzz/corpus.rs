//! Corpora as text: what a decoder is given, one input a line in hexadecimal, with where it is from behind a `#`.
//!
//! Needs nothing but std: `cargo xtask fuzz` is compiled with it, too.

/// The inputs of a corpus, in their order.
///
/// # Errors
/// The line that is neither empty nor pairs of hexadecimal digits before its comment.
pub fn read(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut inputs = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let digits = line.split('#').next().unwrap_or_default().trim();
        if digits.is_empty() {
            continue;
        }
        inputs.push(bytes(digits).ok_or_else(|| format!("line {number} is not in hexadecimal: {line}"))?);
    }
    Ok(inputs)
}

/// A line of a corpus.
#[must_use]
pub fn line(input: &[u8], from: &str) -> String {
    let digits: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{digits} # {from}\n")
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let read = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    if rest.is_empty() { read } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_read_as_they_were_written_and_comments_are_not() {
        let text = format!("# of nobody\n\n{}  00ff\n{}", line(&[1, 0xab], "a peer"), line(&[0x20; 3], "another"));
        assert_eq!(read(&text), Ok(vec![vec![1, 0xab], vec![0, 0xff], vec![0x20; 3]]));
        for wrong in ["0", "0g", "00 11", "\u{e4}\u{e4}"] {
            assert!(read(wrong).is_err_and(|error| error.contains("line 1")), "{wrong}");
        }
    }
}
