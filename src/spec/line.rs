/// A line of a file in `/proc` that a container sees with another value, for all its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenLine {
    pub file: &'static str,
    /// How the line begins.
    pub key: &'static str,
    pub value: &'static str,
    /// The name of the hook that does the same, where other hooks make the runtime run hooks anyway.
    pub hook: &'static str,
}

impl SeenLine {
    /// Returns the text of the file with this line, which goes to its end.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        let lines = text.lines().filter(|line| !line.starts_with(self.key)).map(|line| format!("{line}\n"));
        lines.chain([format!("{} {}\n", self.key, self.value)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_replaced() {
        let line = SeenLine { file: "/proc/x", key: "ModifyDeviceFiles:", value: "0", hook: "x" };
        for (text, expected) in [
            ("Mobile: 0\nModifyDeviceFiles: 1\nUid: 0\n", "Mobile: 0\nUid: 0\nModifyDeviceFiles: 0\n"),
            ("", "ModifyDeviceFiles: 0\n"),
        ] {
            assert_eq!(line.apply(text), expected);
        }
    }
}
