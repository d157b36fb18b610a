//! Parses the value of `--mount`: one record of comma-separated fields, in the format that docker accepts through Go's
//! `encoding/csv` (RFC 4180).

/// Splits a record at its commas. A field in double quotes may contain commas, and `""` inside it stands for one quote.
pub(crate) fn fields(text: &str) -> Result<Vec<String>, &'static str> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, after) = rest.split_once(',').map_or((rest, None), |(field, after)| (field, Some(after)));
            if field.contains('"') {
                return Err("a quote must be at the beginning of a field, as in `\"source=/a,b\"`");
            }
            fields.push(field.to_owned());
            match after {
                Some(after) => rest = after,
                None => return Ok(fields),
            }
            continue;
        };
        let (field, after) = unquote(quoted)?;
        fields.push(field);
        match after.strip_prefix(',') {
            Some(after) => rest = after,
            None if after.is_empty() => return Ok(fields),
            None => return Err("a comma must follow the closing quote of a field"),
        }
    }
}

/// Returns the text up to the closing quote and the rest of the record after it.
fn unquote(text: &str) -> Result<(String, &str), &'static str> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"').ok_or("a quote is not closed")?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return Ok((field, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_split_as_docker_splits_them() {
        for (text, expected) in [
            ("type=bind,source=/a", &["type=bind", "source=/a"][..]),
            ("\"source=/a,b\",target=/c", &["source=/a,b", "target=/c"]),
            ("type=bind,\"source=/a\"\"b\"", &["type=bind", "source=/a\"b"]),
            ("\"\"", &[""]),
            ("a,", &["a", ""]),
        ] {
            assert_eq!(fields(text).unwrap(), expected, "{text}");
        }
        for wrong in ["source=\"/a,b\"", "\"source=/a", "\"a\"b,c", "a\"b"] {
            assert!(fields(wrong).is_err(), "{wrong}");
        }
    }
}
