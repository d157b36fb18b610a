use super::*;

/// The instructions, as text that can be compared.
fn lines(text: &str) -> Vec<String> {
    let file = parse(text).expect(text);
    file.lines.iter().map(|line| format!("{} {:?}", line.number, line.instruction)).collect()
}

fn single(text: &str) -> Instruction {
    let mut file = parse(&format!("FROM x\n{text}")).expect(text);
    file.lines.pop().expect("an instruction").instruction
}

fn problem(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[test]
fn lines_are_joined_and_comments_passed_over() {
    let file = parse(
        "# syntax=docker/dockerfile:1\n\n  # a comment\nfrom base as Build\nRUN apt-get \\\n  # inside\n\n  install x && \\  \n  echo \\\\\nRUN two\n",
    )
    .expect("parsed");
    let told: Vec<_> = file.lines.iter().map(|line| (line.number, line.text.as_str())).collect();
    assert_eq!(told, [(4, "from base as Build"), (5, "RUN apt-get   install x &&   echo \\\\"), (10, "RUN two")]);
    assert!(matches!(&file.lines[0].instruction, Instruction::From { name: Some(name), .. } if name == "build"));
}

#[test]
fn a_backtick_can_be_the_escape() {
    let file = parse("# escape=`\nFROM x\nRUN a `\n b\nCOPY c:\\ d:\\\n").expect("parsed");
    assert_eq!(file.escape, '`');
    assert_eq!(file.lines[1].text, "RUN a  b");
    assert_eq!(file.lines.len(), 3);
}

#[test]
fn windows_line_ends_and_a_byte_order_mark() {
    assert_eq!(lines("\u{feff}FROM a\r\nUSER b\r\n").len(), 2);
}

#[test]
fn run_has_flags_forms_and_documents() {
    let Instruction::Run { flags, command, documents } =
        single("RUN --mount=type=cache,target=\"/a b\" --network=none pip install")
    else {
        panic!("RUN")
    };
    assert_eq!(flags.len(), 2);
    assert_eq!(flags[0].value.as_deref(), Some("type=cache,target=\"/a b\""));
    assert_eq!((command, documents.len()), (Command::Shell("pip install".into()), 0));
    let command = |text| match single(text) {
        Instruction::Run { command, .. } => command,
        other => panic!("{other:?}"),
    };
    assert_eq!(command(r#"RUN ["a", "b c"]"#), Command::Exec(vec!["a".into(), "b c".into()]));
    assert_eq!(command("RUN [ -f x ] && y"), Command::Shell("[ -f x ] && y".into()));
    assert_eq!(command(r#"RUN echo "a <<b" $((1<<2))"#), Command::Shell(r#"echo "a <<b" $((1<<2))"#.into()));
}

#[test]
fn here_documents_stand_where_shells_have_them() {
    let file = parse(
        "FROM x\nRUN python3 <<EOF\nprint(1)\nFROM here\nEOF\nRUN cat <<A >/x && cat <<-'B'\n1\nA\n\tb$\n\tB\nRUN last\n",
    )
    .expect("parsed");
    let documents: Vec<Vec<HereDocument>> = file
        .lines
        .iter()
        .filter_map(|line| match &line.instruction {
            Instruction::Run { documents, .. } => Some(documents.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(documents[0][0].text, "print(1)\nFROM here\n");
    assert!(documents[0][0].expand);
    assert_eq!((documents[1][0].text.as_str(), documents[1][1].content().as_str()), ("1\n", "b$\n"));
    assert!(!documents[1][1].expand && documents[1][1].chomp);
    assert_eq!((documents[2].len(), file.lines[3].number), (0, 11));
    assert!(problem("FROM x\nRUN <<EOF\nx\n").contains("line 2: the here-document `EOF` does not end"));
}

#[test]
fn copy_and_add() {
    let copy = |text| match single(text) {
        Instruction::Copy(copy) => copy,
        other => panic!("{other:?}"),
    };
    let one = copy("COPY --chown=1:2 --from=base a b /d/");
    assert_eq!((one.sources, one.destination.as_str(), one.flags.len()), (vec!["a".into(), "b".into()], "/d/", 2));
    assert_eq!(copy(r#"COPY ["a b", "/d"]"#).sources, ["a b"]);
    let documents = copy("COPY <<one.txt <<\"two.txt\" plain /dest/\nhello $A\none.txt\nbye $A\ntwo.txt");
    let names: Vec<_> = documents.documents.iter().map(|document| (document.name.as_str(), document.expand)).collect();
    assert_eq!(names, [("one.txt", true), ("two.txt", false)]);
    assert_eq!(documents.sources, ["plain"]);
    assert!(copy("ADD --checksum=sha256:0 http://x /y").add);
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    for (text, want) in [
        ("", "there is no `FROM`"),
        ("RUN x\nFROM y", "line 1: an instruction stands before"),
        ("ARG A=1\nFROM x\nFOO y\n", "line 3: `FOO` is not an instruction"),
        ("FROM x\nCOPY a\n", "line 2: `COPY` needs a source"),
        ("FROM x\nCOPY --parents a b\n", "`COPY` does not know `--parents`"),
        ("FROM x\nADD --keep-git-dir=true a b\n", "`ADD` does not know `--keep-git-dir`"),
        ("FROM x y\n", "`FROM` needs"),
        ("FROM --hat=1 x\n", "does not know `--hat`"),
        ("FROM a as b\nFROM b AS B\n", "two stages are named `b`"),
        ("FROM x\nENV a\n", "`ENV` needs a name and a value"),
        ("FROM x\nENV a=1 b\n", "`NAME=VALUE` for every word"),
        ("FROM x\nENV a='1\n", "a quote `'` is not closed"),
        ("FROM x\nSHELL /bin/bash -c\n", "`SHELL` needs a JSON list"),
        ("FROM x\nONBUILD FROM y\n", "`FROM` cannot stand in `ONBUILD`"),
        ("FROM x\nONBUILD FOO y\n", "`FOO` is not"),
        ("FROM x\nHEALTHCHECK curl\n", "`NONE` or `CMD command`"),
        ("FROM x\nRUN\n", "`RUN` needs a command"),
        ("# escape=x\nFROM x\n", "`escape=x`"),
    ] {
        assert!(problem(text).contains(want), "{text:?}: {}", problem(text));
    }
}

proptest::proptest! {
    /// Whatever the text: an answer, never a panic.
    #[test]
    fn no_text_upsets_the_parser(text in "(?s)((FROM|RUN|COPY|ENV|ARG|ADD|ONBUILD|LABEL) |--|<<|[ \\\\\n\"'$\\{\\}=\\[\\]a-zA-Z#]){0,60}") {
        let _ = parse(&text);
        let variables = words::Variables::from([("a".to_owned(), "b".to_owned())]);
        let _ = words::Expander { escape: '\\', variables: &variables }.expand(&text);
    }
}
