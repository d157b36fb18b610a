use super::*;

/// The instructions as text, for comparison.
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
    assert!(problem("FROM x\nRUN <<EOF\nx\n").contains("line 2: the here-document `EOF` is not closed"));
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
        ("", "the file has no `FROM`"),
        ("RUN x\nFROM y", "line 1: only `ARG` is allowed before"),
        ("ARG A=1\nFROM x\nFOO y\n", "line 3: unknown instruction `FOO`"),
        ("FROM x\nCOPY a\n", "line 2: `COPY` needs a source"),
        ("FROM x\nCOPY --unpack a b\n", "`COPY` does not accept the flag `--unpack`"),
        ("FROM x\nADD --keep-git-dir=true a b\n", "`ADD` does not accept the flag `--keep-git-dir`"),
        ("FROM x y\n", "`FROM` needs"),
        ("FROM --hat=1 x\n", "does not accept the flag `--hat`"),
        ("FROM a as b\nFROM b AS B\n", "two stages have the name `b`"),
        ("FROM x\nENV a\n", "`ENV` needs a name and a value"),
        ("FROM x\nENV a=1 b\n", "`NAME=VALUE` for every word"),
        ("FROM x\nENV a='1\n", "a quote `'` is not closed"),
        ("FROM x\nSHELL /bin/bash -c\n", "`SHELL` needs a JSON list"),
        ("FROM x\nONBUILD FROM y\n", "`FROM` is not allowed in `ONBUILD`"),
        ("FROM x\nONBUILD FOO y\n", "unknown instruction `FOO`"),
        ("FROM x\nHEALTHCHECK curl\n", "`NONE` or `CMD command`"),
        ("FROM x\nRUN\n", "`RUN` needs a command"),
        ("# escape=x\nFROM x\n", "`escape=x`"),
        ("FROM --platform x\n", "`FROM --platform` needs a value"),
        ("FROM x AS 1\n", "invalid stage name `1`"),
        ("FROM x\nCOPY --from a b\n", "line 2: `COPY --from` needs a value"),
        ("FROM x\nCOPY --chown= a b\n", "`COPY --chown` needs a value"),
        ("FROM x\nCOPY --from=a --from=b c d\n", "`COPY --from` is given twice"),
        ("FROM x\nCOPY --link=maybe a b\n", "`COPY --link` must be `true` or `false`"),
        ("FROM x\nCMD [\"a\", 1]\n", "must contain only strings: `[\"a\", 1]`"),
        ("FROM x\nVOLUME []\n", "`VOLUME` needs a directory"),
        ("FROM x\nHEALTHCHECK NONE at all\n", "`NONE` or `CMD command`"),
        ("FROM x\nONBUILD RUN <<EOF\nx\n", "line 2: the here-document `EOF` is not closed"),
    ] {
        assert!(problem(text).contains(want), "{text:?}: {}", problem(text));
    }
}

#[test]
fn an_instruction_that_is_kept_keeps_its_documents() {
    let file = parse("FROM x\nONBUILD COPY <<a <<-b /d/\n1\na\n\t2\n\tb\nUSER y\n").expect("parsed");
    let Instruction::OnBuild(text) = &file.lines[1].instruction else { panic!("{file:?}") };
    assert_eq!(text, "COPY <<a <<-b /d/\n1\na\n\t2\n\tb");
    assert_eq!(file.lines[2].instruction, Instruction::User("y".into()));
    let Instruction::Copy(copy) = parse_one(text, '\\').expect("again") else { panic!("{text}") };
    assert_eq!(copy.documents.iter().map(HereDocument::content).collect::<Vec<_>>(), ["1\n", "2\n"]);
    assert_eq!(parse_one("USER a\n\n", '\\').expect("one"), Instruction::User("a".into()));
    assert_eq!(parse_one("USER \\\n a", '\\').expect("joined"), Instruction::User("a".into()));
    // A second instruction is an error and is not silently ignored.
    assert_eq!(parse_one("USER a\n ENV b=c", '\\'), Err(Problem::More("ENV b=c".into())));
}

/// The line, keyword and flags of every instruction, as `parse-dockerfile` reads them.
fn peer(text: &str) -> Vec<String> {
    use parse_dockerfile::{Flag, Instruction as Theirs};
    let file = parse_dockerfile::parse(text).expect(text);
    let flags = |flags: &[Flag<'_>]| -> Vec<String> {
        let told = |flag: &Flag<'_>| {
            format!("{}={}", flag.name.value, flag.value.as_ref().map_or("", |value| value.value.as_ref()))
        };
        flags.iter().map(told).collect()
    };
    let told = |instruction: &Theirs<'_>| {
        let (keyword, flags) = match instruction {
            Theirs::From(x) => (x.from.span.start, flags(&x.options)),
            Theirs::Run(x) => (x.run.span.start, flags(&x.options)),
            Theirs::Copy(x) => (x.copy.span.start, flags(&x.options)),
            Theirs::Add(x) => (x.add.span.start, flags(&x.options)),
            Theirs::Healthcheck(x) => (x.healthcheck.span.start, flags(&x.options)),
            Theirs::Arg(x) => (x.arg.span.start, Vec::new()),
            Theirs::Env(x) => (x.env.span.start, Vec::new()),
            Theirs::Label(x) => (x.label.span.start, Vec::new()),
            Theirs::Workdir(x) => (x.workdir.span.start, Vec::new()),
            Theirs::User(x) => (x.user.span.start, Vec::new()),
            Theirs::Cmd(x) => (x.cmd.span.start, Vec::new()),
            Theirs::Entrypoint(x) => (x.entrypoint.span.start, Vec::new()),
            Theirs::Shell(x) => (x.shell.span.start, Vec::new()),
            Theirs::Expose(x) => (x.expose.span.start, Vec::new()),
            Theirs::Volume(x) => (x.volume.span.start, Vec::new()),
            Theirs::Stopsignal(x) => (x.stopsignal.span.start, Vec::new()),
            Theirs::Onbuild(x) => (x.onbuild.span.start, Vec::new()),
            Theirs::Maintainer(x) => (x.maintainer.span.start, Vec::new()),
            other => panic!("{other:?}"),
        };
        let word = text[keyword..].split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        format!("{} {word} {flags:?}", text[..keyword].matches('\n').count() + 1)
    };
    file.instructions.iter().map(told).collect()
}

/// The same, as this parser reads them.
fn own(text: &str) -> Vec<String> {
    let told = |line: &Line| {
        let flags: &[Flag] = match &line.instruction {
            Instruction::Run { flags, .. } | Instruction::Healthcheck { flags, .. } => flags,
            Instruction::Copy(copy) => &copy.flags,
            _ => &[],
        };
        let mut flags: Vec<String> =
            flags.iter().map(|flag| format!("{}={}", flag.name, flag.value.as_deref().unwrap_or(""))).collect();
        if let Instruction::From { platform: Some(platform), .. } = &line.instruction {
            flags.push(format!("platform={platform}"));
        }
        let word = line.text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        format!("{} {word} {flags:?}", line.number)
    };
    parse(text).expect(text).lines.iter().map(told).collect()
}

#[test]
fn what_the_crate_can_read_is_read_alike() {
    for text in [
        include_str!("../../../images/jupyter/Containerfile"),
        include_str!("../../../images/pytorch_cuda10/Containerfile"),
        include_str!("../../../images/tf2/Containerfile"),
        "ARG A=1\nFROM --platform=$BUILDPLATFORM x AS y\nRUN --mount=type=cache,target=/c --network=none a \\\n  # inside\n\n  b\nUSER c\n",
        "FROM x\nCOPY --from=y --chown=1:2 --link a b c/\nADD --checksum=sha256:0 http://x /y\nHEALTHCHECK --interval=5s CMD [\"true\"]\n",
        "FROM x\nEXPOSE 80 81/udp\nWORKDIR /x\nSTOPSIGNAL 9\nSHELL [\"a\"]\nMAINTAINER me\nLABEL a=b \"c d\"=e\nVOLUME /a\nENTRYPOINT a\nCMD b\n",
        "# escape=`\nfrom x\nrun a `\n b\nenv A=1\n",
        "FROM x\r\nONBUILD RUN y\r\nRUN <<EOF\r\nFROM inside\r\nEOF\r\nUSER z\r\n",
    ] {
        assert_eq!(own(text), peer(text), "{text}");
    }
}

#[test]
fn what_looks_like_a_flag_is_refused_where_there_are_none() {
    for (line, flag) in [
        ("CMD --x y", "x"),
        ("ENTRYPOINT --init=1 sh", "init"),
        ("ENV --a=b c=d", "a"),
        ("LABEL --a", "a"),
        ("USER --me", "me"),
        ("WORKDIR --d", "d"),
        ("EXPOSE --80", "80"),
        ("VOLUME --v /a", "v"),
        ("SHELL --s [\"sh\"]", "s"),
        ("ONBUILD --now RUN x", "now"),
        ("ONBUILD USER --me", "me"),
        ("MAINTAINER --m", "m"),
        ("STOPSIGNAL --9", "9"),
        ("ARG --a=b", "a"),
    ] {
        let error = parse(&format!("FROM x\n{line}\n")).expect_err(line);
        assert!(matches!(&error.problem, Problem::Flag { flag: found, .. } if found == flag), "{line}: {error}");
    }
    for line in [r#"CMD ["--x"]"#, "CMD -x", "ENTRYPOINT sh --x", "ENV a=--b"] {
        parse(&format!("FROM x\n{line}\n")).expect(line);
    }
}

/// Documents why gpurun has its own parser. If this test fails with a newer version of the crate, reconsider that
/// choice.
#[test]
fn what_the_crate_cannot_read() {
    for text in [
        "FROM x\nRUN python3 <<EOF\nprint(1)\nEOF\n",
        "FROM x\nRUN cat <<A >/x && cat <<-'B' >/y\n1\nA\n\t2\n\tB\n",
        "FROM x\nRUN --mount=type=cache,target=/c cat <<EOF\n\n# no comment\nEOF\n",
    ] {
        assert!(parse_dockerfile::parse(text).is_err(), "{text}");
        assert_eq!(parse(text).expect(text).lines.len(), 2, "{text}");
    }
    // A here-document in `COPY` has a name, which becomes the file's name. The crate loses it.
    let file = parse_dockerfile::parse("FROM x\nCOPY <<name /d/\ntext\nname\n").expect("parsed");
    assert!(!format!("{:?}", file.instructions).contains("name:"), "{:?}", file.instructions);
}

proptest::proptest! {
    /// The parser returns a result for any text and never panics.
    #[test]
    fn no_text_upsets_the_parser(text in "(?s)((FROM|RUN|COPY|ENV|ARG|ADD|ONBUILD|LABEL) |--|<<|[ \\\\\n\"'$\\{\\}=\\[\\]a-zA-Z#]){0,60}") {
        let _ = parse(&text);
        let variables = words::Variables::from([("a".to_owned(), "b".to_owned())]);
        let _ = words::Expander { escape: '\\', variables: &variables }.expand(&text);
    }
}
