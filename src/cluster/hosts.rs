//! Slurm's lists of nodes: `n[1-3,07],login`.

/// Returns the first node of a list, or `None` for a text that is not one.
#[must_use]
pub(super) fn first(list: &str) -> Option<String> {
    let mut name = String::new();
    let mut rest = list.trim();
    loop {
        let end = rest.find([',', '[']).unwrap_or(rest.len());
        let (plain, after) = rest.split_at(end);
        name.push_str(plain);
        let Some(inside) = after.strip_prefix('[') else { break };
        let (range, after) = inside.split_once(']')?;
        // The digits keep their zeros: `n[07-12]` begins with `n07`.
        let number = range.split([',', '-']).next().filter(|number| !number.is_empty())?;
        name.push_str(number);
        rest = after;
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    (!name.is_empty() && name.chars().all(is_name)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_of_each_form() {
        for (list, node) in [
            ("n1", "n1"),
            ("n1,n2", "n1"),
            ("n[1-2]", "n1"),
            ("n[07-12,20],login", "n07"),
            ("rack[1-2]-node[3,5]", "rack1-node3"),
            ("gpu-a.example.org", "gpu-a.example.org"),
            ("n[3]-ib,x", "n3-ib"),
        ] {
            assert_eq!(first(list).as_deref(), Some(node), "{list}");
        }
        for wrong in ["", "n[", "n[]", "n[1", ",n1", "a b", "n[1;x]"] {
            assert_eq!(first(wrong), None, "{wrong}");
        }
    }
}
