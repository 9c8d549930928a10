//! One CSV line into its fields.
//!
//! A record never spans lines in this data, so a line can be split, and sent to a worker, without its neighbours. An
//! opening quote that the line does not close is therefore an error here.

use csv::{ReaderBuilder, StringRecord};

/// Splits `line` into exactly `N` fields.
///
/// Lines without quotes, which is nearly all of them, are cut at the commas in one pass without allocating. A line
/// with a quote goes through the `csv` crate; `unquoted` then owns its fields.
pub(crate) fn split<'a, const N: usize>(
    line: &'a str,
    unquoted: &'a mut Option<StringRecord>,
) -> Result<[&'a str; N], String> {
    let mut fields = [""; N];
    let mut count = 0;
    let mut start = 0;
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            b',' => {
                if let Some(field) = fields.get_mut(count) {
                    *field = &line[start..at];
                }
                count += 1;
                start = at + 1;
            }
            b'"' => return split_quoted(line, unquoted),
            _ => {}
        }
    }
    if let Some(field) = fields.get_mut(count) {
        *field = &line[start..];
    }
    expect_count::<N>(count + 1)?;
    Ok(fields)
}

fn split_quoted<'a, const N: usize>(
    line: &'a str,
    unquoted: &'a mut Option<StringRecord>,
) -> Result<[&'a str; N], String> {
    // Quotes come in pairs, doubled ones too. The `csv` crate would take an unclosed one for closed by the end.
    if line.bytes().filter(|&byte| byte == b'"').count() % 2 == 1 {
        return Err("a quoted field is not closed".to_owned());
    }
    let record = unquoted.insert(StringRecord::new());
    ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(line.len())
        .from_reader(line.as_bytes())
        .read_record(record)
        .map_err(|error| error.to_string())?;
    expect_count::<N>(record.len())?;
    let mut fields = [""; N];
    for (field, text) in fields.iter_mut().zip(record.iter()) {
        *field = text;
    }
    Ok(fields)
}

fn expect_count<const N: usize>(count: usize) -> Result<(), String> {
    match count {
        _ if count == N => Ok(()),
        1 => Err(format!("1 field instead of {N}")),
        _ => Err(format!("{count} fields instead of {N}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields<const N: usize>(line: &str) -> Result<Vec<String>, String> {
        split::<N>(line, &mut None).map(|fields| fields.iter().map(|field| (*field).to_owned()).collect())
    }

    #[test]
    fn cuts_at_commas() {
        assert_eq!(fields::<3>("a,,ü").unwrap(), ["a", "", "ü"]);
        assert_eq!(fields::<1>("").unwrap(), [""]);
        assert_eq!(fields::<2>("a,").unwrap(), ["a", ""]);
    }

    #[test]
    fn quoted_fields_keep_commas_and_quotes() {
        assert_eq!(fields::<3>(r#"a,"b,c","d ""e""""#).unwrap(), ["a", "b,c", r#"d "e""#]);
        assert_eq!(fields::<2>(r#""",b"#).unwrap(), ["", "b"]);
    }

    #[test]
    fn counts_fields() {
        assert_eq!(fields::<2>("").unwrap_err(), "1 field instead of 2");
        assert_eq!(fields::<2>("a,b,c").unwrap_err(), "3 fields instead of 2");
        assert_eq!(fields::<2>(r#""a,b",c,d"#).unwrap_err(), "3 fields instead of 2");
        assert_eq!(fields::<2>(r#"a,"b"#).unwrap_err(), "a quoted field is not closed");
    }
}
