//! Every instruction against the exact tree and config that it must make.

use crate::fixture::Fixture;

pub struct Case {
    pub name: &'static str,
    /// The context; see [`Fixture::context`].
    files: &'static [(&'static str, &'static str)],
    /// After `FROM box`, unless it has a `FROM` of its own.
    text: &'static str,
    args: &'static [&'static str],
    /// What differs from `box`, with the directories that the paths need.
    tree: &'static [&'static str],
    /// JSON pointers into the config, and what stands there.
    config: &'static [(&'static str, &'static str)],
    /// Words of the error, where there must be one; then tree and config are not looked at.
    error: &'static [&'static str],
}

const CASE: Case = Case { name: "", files: &[], text: "", args: &[], tree: &[], config: &[], error: &[] };

pub fn check(case: &Case) {
    let fixture = Fixture::shared();
    let context = fixture.context(case.files);
    let text = if case.text.contains("FROM ") { case.text.to_owned() } else { format!("FROM box\n{}", case.text) };
    let answer = fixture.build(&context, &text, case.args);
    if !case.error.is_empty() {
        assert_eq!(answer.code, 1, "{}", answer.err);
        for snippet in case.error {
            assert!(answer.err.contains(snippet), "`{snippet}` is not in:\n{}", answer.err);
        }
        return;
    }
    assert_eq!(answer.code, 0, "{text}\n{}", answer.err);
    let id = answer.out.trim();
    assert_eq!(fixture.news(id), case.tree, "{}", case.name);
    let config = fixture.config(id);
    for (pointer, want) in case.config {
        let found = config.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(found, serde_json::from_str::<serde_json::Value>(want).unwrap(), "{pointer} of {config:#}");
    }
}

pub const CASES: &[Case] = &[
    Case { name: "from_alone", ..CASE },
    Case {
        name: "from_scratch",
        files: &[("x", "x")],
        text: "FROM scratch\nCOPY x /only\n",
        tree: &["- /bin", "- /etc", "- /etc/group", "- /etc/passwd", "f 644 0:0 /only x", "- /tmp"],
        config: &[("/WorkingDir", "\"/\"")],
        ..CASE
    },
    Case {
        name: "from_with_arg",
        text: "ARG BASE=nothing\nFROM ${BASE}\n",
        args: &["--build-arg", "BASE=box"],
        ..CASE
    },
    Case {
        name: "from_scratch_has_a_path",
        files: &[("x", "x")],
        text: "FROM scratch\nCOPY x /only\nENV A=$PATH\n",
        tree: &["- /bin", "- /etc", "- /etc/group", "- /etc/passwd", "f 644 0:0 /only x", "- /tmp"],
        config: &[(
            "/Env",
            "[\"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\", \"A=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"]",
        )],
        ..CASE
    },
    Case {
        name: "copy_with_wildcards_that_match_nothing",
        files: &[("req.txt", "r"), ("uv.lock", "u")],
        text: "COPY req.txt environment.yml* uv.loc[k] /o/\nCOPY none* no?e [n]one/* /none/\nADD *.tar /none/\n",
        tree: &["d 755 0:0 /o", "f 644 0:0 /o/req.txt r", "f 644 0:0 /o/uv.lock u"],
        ..CASE
    },
    Case {
        name: "copy_from_with_wildcards_that_match_nothing",
        text: "FROM box AS a\nRUN mkdir /d && echo x >/d/x\nFROM box\nCOPY --from=a /d/x /no*/x /n?ne /o/\nCOPY --from=a /none* /p/\n",
        tree: &["d 755 0:0 /o", "f 644 0:0 /o/x x|"],
        ..CASE
    },
    Case {
        name: "copy_of_a_missing_file_beside_wildcards",
        files: &[("a", "a")],
        text: "COPY a* missing none* /o/\n",
        error: &["line 2", "has no `missing`"],
        ..CASE
    },
    Case {
        name: "copy_from_of_a_missing_file_beside_wildcards",
        text: "FROM box AS a\nFROM box\nCOPY --from=a /etc/pass* /missing /o/\n",
        error: &["line 3", "`/missing` is not in `a`"],
        ..CASE
    },
    Case {
        name: "copy_of_a_directory_over_a_link",
        files: &[("t/lib/x", "x")],
        text: "RUN mkdir /real && ln -s real /lib\nCOPY t/ /\n",
        error: &["line 3", "cannot copy a directory to `/lib` in the image: it is a link"],
        ..CASE
    },
    Case { name: "from_default_of_arg", text: "ARG BASE=box\nFROM $BASE\n", ..CASE },
    Case {
        name: "from_platform",
        text: "FROM --platform=$BUILDPLATFORM box\nARG TARGETARCH\nRUN test -n \"$TARGETARCH\"\n",
        ..CASE
    },
    Case {
        name: "from_other_platform",
        text: "FROM --platform=linux/s390x box\n",
        error: &["line 1", "linux/s390x"],
        ..CASE
    },
    Case {
        name: "stages",
        text: "FROM box AS one\nRUN echo 1 >/one\nFROM one AS two\nRUN echo 2 >/two\nFROM box\nCOPY --from=two /one /two /from/\nCOPY --from=0 /one /first\n",
        tree: &["f 644 0:0 /first 1|", "d 755 0:0 /from", "f 644 0:0 /from/one 1|", "f 644 0:0 /from/two 2|"],
        ..CASE
    },
    Case {
        name: "target_leaves_the_rest_alone",
        text: "FROM box AS good\nRUN echo g >/g\nFROM box AS bad\nRUN false\n",
        args: &["--target", "good"],
        tree: &["f 644 0:0 /g g|"],
        ..CASE
    },
    Case {
        name: "a_stage_that_nobody_needs_is_not_built",
        text: "FROM box AS bad\nRUN false\nFROM box\nRUN echo g >/g\n",
        tree: &["f 644 0:0 /g g|"],
        ..CASE
    },
    Case {
        name: "run_shell",
        text: "RUN echo $HOME >/home && \\\n    # a comment\n    echo two >>/home\n",
        tree: &["f 644 0:0 /home /root|two|"],
        ..CASE
    },
    Case { name: "run_exec", text: "RUN [\"touch\", \"/a $HOME\"]\n", tree: &["f 644 0:0 /a $HOME "], ..CASE },
    Case {
        name: "run_fails",
        text: "RUN echo before; \\\n  echo why >&2; exit 7\n",
        error: &["line 2", "RUN echo before", "exit status 7", "| before", "| why"],
        ..CASE
    },
    Case {
        name: "run_without_program",
        text: "RUN [\"nothing-there\"]\n",
        error: &["line 2", "nothing-there"],
        ..CASE
    },
    Case {
        name: "run_heredoc",
        text: "RUN <<EOF\necho $((1+1)) >/sum\nmkdir /d\nEOF\n",
        tree: &["d 755 0:0 /d", "f 644 0:0 /sum 2|"],
        ..CASE
    },
    Case {
        name: "run_heredoc_as_input",
        text: "RUN cat >/a <<'X' && cat >/b <<-Y\n$HOME\nX\n\ttabs\n\tY\n",
        tree: &["f 644 0:0 /a $HOME|", "f 644 0:0 /b tabs|"],
        ..CASE
    },
    Case {
        name: "run_heredoc_with_interpreter",
        text: "RUN <<EOF\n#!/bin/awk -f\nBEGIN { print \"awk\" >\"/a\" }\nEOF\n",
        tree: &["f 644 0:0 /a awk|"],
        ..CASE
    },
    Case {
        name: "run_deletes",
        text: "RUN rm /etc/group /etc/passwd\n",
        tree: &["- /etc/group", "- /etc/passwd"],
        ..CASE
    },
    Case {
        name: "run_replaces_a_directory",
        text: "RUN mkdir /d && echo old >/d/old\nRUN rm -r /d && mkdir /d && echo new >/d/new\n",
        tree: &["d 755 0:0 /d", "f 644 0:0 /d/new new|"],
        ..CASE
    },
    Case {
        name: "run_keeps_modes_owners_and_links",
        text: "RUN echo x >/x && chown 7:8 /x && chmod 4750 /x && ln /x /y && ln -s x /z && mkfifo -m 600 /p\n",
        tree: &["? 600 0:0 /p", "f 4750 7:8 /x x|", "f 4750 7:8 /y x|", "l - 0:0 /z x"],
        ..CASE
    },
    Case {
        name: "run_leaves_no_mount_points",
        text: "RUN ls /proc /dev /sys >/dev/null && cat /etc/resolv.conf /etc/hosts >/dev/null\n",
        ..CASE
    },
    Case {
        name: "run_as_user_in_a_directory",
        text: "WORKDIR /w\nRUN chown 1000:100 /w\nUSER me\nRUN id -u >id && id -G >>id && pwd >>id\n",
        tree: &["d 755 1000:100 /w", "f 644 1000:100 /w/id 1000|100 50|/w|"],
        config: &[("/User", "\"me\""), ("/WorkingDir", "\"/w\"")],
        ..CASE
    },
    Case {
        name: "run_network_none",
        text: "RUN --network=none ip -o link | grep -vc lo >/links; test $(cat /links) = 0\n",
        tree: &["f 644 0:0 /links 0|"],
        ..CASE
    },
    Case {
        name: "run_security_is_refused",
        text: "RUN --security=insecure true\n",
        error: &["line 2", "--security"],
        ..CASE
    },
    Case {
        name: "mount_tmpfs_leaves_nothing",
        text: "RUN --mount=type=tmpfs,target=/t echo x >/t/x && test -f /t/x\n",
        ..CASE
    },
    Case {
        name: "mount_bind_from_the_context",
        files: &[("in/x", "x\n")],
        text: "RUN --mount=type=bind,source=in,target=/m cp /m/x /x && ! touch /m/y\n",
        tree: &["f 644 0:0 /x x|"],
        ..CASE
    },
    Case {
        name: "mount_bind_from_a_stage",
        text: "FROM box AS other\nRUN echo o >/o\nFROM box\nRUN --mount=from=other,source=/o,target=/m/o,rw cat /m/o >/x && echo y >/m/o\n",
        tree: &["f 644 0:0 /x o|"],
        ..CASE
    },
    Case {
        name: "mount_cache_is_in_no_layer",
        text: "RUN --mount=type=cache,target=/c,id=case-cache echo x >/c/x && ls /c >/seen\n",
        tree: &["f 644 0:0 /seen x|"],
        ..CASE
    },
    Case {
        name: "mount_secret_is_optional",
        text: "RUN --mount=type=secret,id=none test ! -e /run/secrets/none\n",
        ..CASE
    },
    Case {
        name: "mount_secret_is_required",
        text: "RUN --mount=type=secret,id=none,required true\n",
        error: &["line 2", "secret `none`", "--secret id=none"],
        ..CASE
    },
    Case {
        name: "copy_a_file",
        files: &[("600:a", "A")],
        text: "COPY a /x\nCOPY a /dir/\nCOPY a /tmp\n",
        tree: &["d 755 0:0 /dir", "f 600 0:0 /dir/a A", "f 600 0:0 /tmp/a A", "f 600 0:0 /x A"],
        ..CASE
    },
    Case {
        name: "copy_a_directory",
        files: &[("d/x", "x"), ("d/sub/y", "y"), ("700:d/closed/", ""), ("d/link", "->x")],
        text: "COPY d /to\n",
        tree: &[
            "d 755 0:0 /to",
            "d 700 0:0 /to/closed",
            "l - 0:0 /to/link x",
            "d 755 0:0 /to/sub",
            "f 644 0:0 /to/sub/y y",
            "f 644 0:0 /to/x x",
        ],
        ..CASE
    },
    Case {
        name: "copy_patterns",
        files: &[("a1.txt", "1"), ("a2.txt", "2"), ("b.txt", "b"), ("a[3].txt", "3")],
        text: "COPY a?.txt /d/\nCOPY [\"a[[]3].txt\", \"/e/\"]\n",
        tree: &[
            "d 755 0:0 /d",
            "f 644 0:0 /d/a1.txt 1",
            "f 644 0:0 /d/a2.txt 2",
            "d 755 0:0 /e",
            "f 644 0:0 /e/a[3].txt 3",
        ],
        ..CASE
    },
    Case {
        name: "copy_chown_and_chmod",
        files: &[("d/x", "x")],
        text: "COPY --chown=me:staff --chmod=750 d /a/b\nCOPY --chown=7 d/x /seven\n",
        tree: &["d 755 1000:50 /a", "d 750 1000:50 /a/b", "f 750 1000:50 /a/b/x x", "f 644 7:7 /seven x"],
        ..CASE
    },
    Case {
        name: "copy_chown_of_nobody",
        files: &[("x", "")],
        text: "COPY --chown=ghost x /\n",
        error: &["line 2", "no user `ghost`"],
        ..CASE
    },
    Case {
        name: "copy_bad_chmod",
        files: &[("x", "")],
        text: "COPY --chmod=u+x x /\n",
        error: &["line 2", "--chmod=u+x"],
        ..CASE
    },
    Case {
        name: "copy_to_the_workdir",
        files: &[("x", "x")],
        text: "WORKDIR /w\nWORKDIR sub\nCOPY x .\nCOPY x y\n",
        tree: &["d 755 0:0 /w", "d 755 0:0 /w/sub", "f 644 0:0 /w/sub/x x", "f 644 0:0 /w/sub/y x"],
        config: &[("/WorkingDir", "\"/w/sub\"")],
        ..CASE
    },
    Case {
        name: "copy_heredocs",
        text: "ARG A=1\nCOPY <<one <<\"two\" /d/\n$A\none\n$A\ntwo\nCOPY <<EOF /single\nx\nEOF\n",
        tree: &["d 755 0:0 /d", "f 644 0:0 /d/one 1|", "f 644 0:0 /d/two $A|", "f 644 0:0 /single x|"],
        ..CASE
    },
    Case {
        name: "copy_through_a_link",
        files: &[("x", "x")],
        text: "RUN mkdir /real && ln -s real /alias\nCOPY x /alias/\nCOPY x /alias/deep/y\n",
        tree: &[
            "l - 0:0 /alias real",
            "d 755 0:0 /real",
            "d 755 0:0 /real/deep",
            "f 644 0:0 /real/deep/y x",
            "f 644 0:0 /real/x x",
        ],
        ..CASE
    },
    Case {
        name: "copy_link_flag",
        files: &[("x", "x")],
        text: "COPY --link x /x\n",
        tree: &["f 644 0:0 /x x"],
        ..CASE
    },
    Case {
        name: "copy_from_keeps_owners",
        text: "FROM box AS a\nRUN mkdir /d && echo x >/d/x && ln -s x /d/l && chown -R 3:4 /d && chown -h 3:4 /d/l\nFROM box\nCOPY --from=a /d /d\nCOPY --from=a --chown=5:6 /d/* /e/\n",
        tree: &[
            "d 755 0:0 /d",
            "l - 3:4 /d/l x",
            "f 644 3:4 /d/x x|",
            "d 755 5:6 /e",
            "f 644 5:6 /e/l x|",
            "f 644 5:6 /e/x x|",
        ],
        ..CASE
    },
    Case {
        name: "copy_from_an_image",
        text: "FROM scratch\nCOPY --from=box /etc/group /g\nFROM box\nCOPY --from=box /etc/group /tmp/\n",
        tree: &["f 644 0:0 /tmp/group root:x:0:|users:x:100:|staff:x:50:me|"],
        ..CASE
    },
    Case { name: "copy_what_is_not_there", text: "COPY nothing /\n", error: &["line 2", "no `nothing`"], ..CASE },
    Case {
        name: "copy_a_directory_over_a_file",
        files: &[("d/x", "")],
        text: "COPY d /etc/passwd\n",
        error: &["line 2", "/etc/passwd"],
        ..CASE
    },
    Case {
        name: "copy_parents",
        files: &[
            ("x/a.txt", "1"),
            ("750:x/y/", ""),
            ("x/y/a.txt", "2"),
            ("x/y/b.txt", "3"),
            ("y/b.txt", "4"),
            ("z/b.md", "5"),
        ],
        text: "COPY --parents ./x/y/a.txt ./*/b.txt /p\nCOPY --parents x/./y/*.txt /q/\nCOPY --parents=true **/a.txt /r/\n\
            COPY --parents=false x/a.txt /s/\nCOPY --parents ./z/./ /t/\n",
        tree: &[
            "d 755 0:0 /p",
            "d 755 0:0 /p/x",
            "d 750 0:0 /p/x/y",
            "f 644 0:0 /p/x/y/a.txt 2",
            "d 755 0:0 /p/y",
            "f 644 0:0 /p/y/b.txt 4",
            "d 755 0:0 /q",
            "d 750 0:0 /q/y",
            "f 644 0:0 /q/y/a.txt 2",
            "f 644 0:0 /q/y/b.txt 3",
            "d 755 0:0 /r",
            "d 755 0:0 /r/x",
            "f 644 0:0 /r/x/a.txt 1",
            "d 750 0:0 /r/x/y",
            "f 644 0:0 /r/x/y/a.txt 2",
            "d 755 0:0 /s",
            "f 644 0:0 /s/a.txt 1",
            "d 755 0:0 /t",
            "f 644 0:0 /t/b.md 5",
        ],
        ..CASE
    },
    Case {
        name: "copy_parents_from_a_stage",
        text: "FROM box AS a\nRUN mkdir -p /x/y && echo 1 >/x/y/a && ln -s a /x/y/l && ln /x/y/a /x/h && echo 2 >/x/n\n\
            FROM box\nCOPY --from=a --parents --chown=5:6 /x/y /p/\nCOPY --from=a --parents /x/./y/a /q/\n",
        tree: &[
            "d 755 5:6 /p",
            "d 755 5:6 /p/x",
            "d 755 5:6 /p/x/y",
            "f 644 5:6 /p/x/y/a 1|",
            "l - 5:6 /p/x/y/l a",
            "d 755 0:0 /q",
            "d 755 0:0 /q/y",
            "f 644 0:0 /q/y/a 1|",
        ],
        ..CASE
    },
    Case {
        name: "copy_parents_of_a_missing_file",
        files: &[("x/a", "")],
        text: "COPY --parents x/none* /p/\nCOPY --parents ./x/b /p/\n",
        error: &["line 3", "has no `x/b`"],
        ..CASE
    },
    Case {
        name: "copy_parents_of_a_missing_file_of_a_stage",
        text: "FROM box AS a\nFROM box\nCOPY --from=a --parents /etc/./none /p/\n",
        error: &["line 3", "`none` is not in `a`"],
        ..CASE
    },
    Case {
        name: "copy_exclude",
        files: &[
            ("app/storage/cache/c", "c"),
            ("app/storage/views/v", "v"),
            ("app/storage/views/keep", "k"),
            ("app/a.log", "l"),
            ("hom.txt", ""),
            ("home.md", "h"),
        ],
        text: "COPY --exclude=storage/views --exclude='!storage/views/keep' --exclude=*.log app/ /app/\n\
            COPY --exclude=*.txt hom* /hom/\nADD --exclude=**/v --exclude=hom* --exclude=*.log . /add/\n",
        tree: &[
            "d 755 0:0 /add",
            "d 755 0:0 /add/app",
            "f 644 0:0 /add/app/a.log l",
            "d 755 0:0 /add/app/storage",
            "d 755 0:0 /add/app/storage/cache",
            "f 644 0:0 /add/app/storage/cache/c c",
            "d 755 0:0 /add/app/storage/views",
            "f 644 0:0 /add/app/storage/views/keep k",
            "d 755 0:0 /app",
            "d 755 0:0 /app/storage",
            "d 755 0:0 /app/storage/cache",
            "f 644 0:0 /app/storage/cache/c c",
            "d 755 0:0 /app/storage/views",
            "f 644 0:0 /app/storage/views/keep k",
            "d 755 0:0 /hom",
            "f 644 0:0 /hom/home.md h",
        ],
        ..CASE
    },
    Case {
        name: "copy_exclude_from_a_stage",
        text: "FROM box AS a\nRUN mkdir -p /d/s && echo 1 >/d/s/x && echo 2 >/d/y && echo 3 >/d/z\n\
            FROM box\nCOPY --from=a --exclude=s --exclude=y /d /p\nCOPY --from=a --exclude=z /d/z /d/y /q/\n",
        tree: &["d 755 0:0 /p", "f 644 0:0 /p/z 3|", "d 755 0:0 /q", "f 644 0:0 /q/y 2|"],
        ..CASE
    },
    Case {
        name: "copy_exclude_of_a_bad_pattern",
        files: &[("x", "")],
        text: "COPY --exclude=[a x /\n",
        error: &["line 2", "`[a`"],
        ..CASE
    },
    Case {
        name: "a_wildcard_without_a_final_slash",
        files: &[("target/app-1.jar", "1"), ("target/app-2.jar", "2"), ("one/a", "a")],
        text: "COPY target/*.jar /app.jar\nCOPY one/* /one\n",
        tree: &["f 644 0:0 /app.jar 2", "f 644 0:0 /one a"],
        ..CASE
    },
    Case {
        name: "arguments_reach_the_stages_based_on_theirs",
        text: "ARG TOP=t\nFROM box AS lower\nARG A=\"b c\" TOP\nARG B=$A\nFROM lower AS upper\nRUN echo \"$A|$B|$TOP\" >/up\n\
            ARG A=new\nRUN echo \"$A|$B\" >>/up\nFROM box\nCOPY --from=upper /up /up\nRUN echo \"<$A>\" >>/up\n",
        tree: &["f 644 0:0 /up b c|b c|t|new|b c|<>|"],
        ..CASE
    },
    Case {
        name: "a_working_directory_of_a_user_who_is_not_there_yet",
        text: "USER ghost\nWORKDIR /w\nUSER root\nRUN stat -c %u:%g /w >/owner\n",
        tree: &["f 644 0:0 /owner 0:0|", "d 755 0:0 /w"],
        ..CASE
    },
    Case {
        name: "mount_caches_with_their_own_owners",
        text: "USER 10\nRUN --mount=type=cache,uid=10,target=/own-cache touch /own-cache/ten\nUSER 0\n\
            RUN --mount=type=cache,target=/own-cache touch /own-cache/zero && ls /own-cache >/seen\n\
            RUN --mount=type=cache,uid=10,target=/own-cache ls /own-cache >>/seen\n",
        tree: &["f 644 0:0 /seen zero|ten|"],
        ..CASE
    },
    Case {
        name: "ignored_files_are_not_there",
        files: &[(".dockerignore", "*.log\nd\n!d/keep\n"), ("x.log", ""), ("y", "y"), ("d/keep", "k"), ("d/drop", "")],
        text: "COPY . /c\n",
        tree: &[
            "d 755 0:0 /c",
            "f 644 0:0 /c/.dockerignore *.log|d|!d/keep|",
            "d 755 0:0 /c/d",
            "f 644 0:0 /c/d/keep k",
            "f 644 0:0 /c/y y",
        ],
        ..CASE
    },
    Case {
        name: "copying_what_is_ignored",
        files: &[(".dockerignore", "x\n"), ("x", "")],
        text: "COPY x /\n",
        error: &["line 2", "is excluded by `.dockerignore`"],
        ..CASE
    },
    Case {
        name: "add_a_file",
        files: &[("x", "x")],
        text: "ADD x /d/\n",
        tree: &["d 755 0:0 /d", "f 644 0:0 /d/x x"],
        ..CASE
    },
    Case {
        name: "add_of_an_https_repository_is_refused",
        text: "ADD https://example.com/x/y.git#main /d\n",
        error: &["line 2", "git repository"],
        ..CASE
    },
    Case {
        name: "add_checksum_of_a_file_is_refused",
        files: &[("x", "x")],
        text: "ADD --checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 x /x\n",
        error: &["line 2", "--checksum", "one source"],
        ..CASE
    },
    Case {
        name: "add_bad_checksum",
        text: "ADD --checksum=md5:0 http://127.0.0.1:1/x /x\n",
        error: &["line 2", "--checksum=md5:0"],
        ..CASE
    },
    Case {
        name: "add_of_a_url_without_a_name",
        text: "ADD http://127.0.0.1:1/ /d/\n",
        error: &["line 2", "has no file name"],
        ..CASE
    },
    Case {
        name: "add_chown_and_chmod",
        files: &[("d/x", "x")],
        text: "ADD --chown=5:6 --chmod=0640 d/x /x\nADD d /to/\n",
        tree: &["d 755 0:0 /to", "f 644 0:0 /to/x x", "f 640 5:6 /x x"],
        ..CASE
    },
    Case { name: "add_git_is_refused", text: "ADD git@example.com:x/y /d\n", error: &["line 2", "git"], ..CASE },
    Case {
        name: "env_and_arg",
        text: "ARG A=1 B\nENV C=$A D=\"x $B\" \\\n  E=${none:-dflt} F=${A:+yes}\nENV old some words\nARG C=never\nRUN echo \"$A|$B|$C|$D|$E|$F|$old\" >/env\n",
        args: &["--build-arg", "B=b", "--build-arg", "C=c"],
        tree: &["f 644 0:0 /env 1|b|1|x b|dflt|yes|some words|"],
        config: &[("/Env", r#"["PATH=/bin", "C=1", "D=x b", "E=dflt", "F=yes", "old=some words"]"#)],
        ..CASE
    },
    Case {
        name: "arg_before_from_and_in_a_stage",
        text: "ARG V=1\nFROM box\nRUN echo \"[$V]\" >/none\nARG V\nRUN echo \"[$V]\" >/some\n",
        tree: &["f 644 0:0 /none []|", "f 644 0:0 /some [1]|"],
        ..CASE
    },
    Case {
        name: "config_instructions",
        text: "LABEL a=\"b c\" d=e\nEXPOSE 80 53/udp\nVOLUME /v [\"x\"]\nUSER 5:6\nSTOPSIGNAL SIGINT\nSHELL [\"/bin/ash\", \"-c\"]\n\
            ENTRYPOINT [\"a\", \"b\"]\nCMD c $d\nHEALTHCHECK --interval=5s CMD [\"true\"]\n",
        config: &[
            ("/Labels", r#"{"a": "b c", "d": "e"}"#),
            ("/ExposedPorts", r#"{"80/tcp": {}, "53/udp": {}}"#),
            ("/User", "\"5:6\""),
            ("/StopSignal", "\"SIGINT\""),
            ("/Shell", r#"["/bin/ash", "-c"]"#),
            ("/Entrypoint", r#"["a", "b"]"#),
            ("/Cmd", r#"["/bin/ash", "-c", "c $d"]"#),
            ("/Healthcheck/Test", r#"["CMD", "true"]"#),
            ("/Healthcheck/Interval", "5000000000"),
        ],
        ..CASE
    },
    Case {
        name: "stopsignal_must_be_one",
        text: "STOPSIGNAL SIGNOPE\n",
        error: &["line 2", "`STOPSIGNAL` needs a signal"],
        ..CASE
    },
    Case {
        name: "healthcheck_none",
        text: "HEALTHCHECK --retries=3 --start-period=1m --timeout=500ms CMD a || b\nHEALTHCHECK NONE\n",
        config: &[("/Healthcheck/Test", r#"["NONE"]"#)],
        ..CASE
    },
    Case {
        name: "expansion_in_every_instruction_that_has_it",
        files: &[("src-1/x", "x")],
        text: "ARG N=1 P=/to U=5:6\nWORKDIR ${P}/w\nCOPY --chown=$U src-${N} $P/c\nUSER $U\nEXPOSE ${N}80\nVOLUME $P/v\n\
            STOPSIGNAL ${S:-SIGINT}\nLABEL n$N=${P#/}\nENV E=${P%o}${P/to/at}\nCMD [\"$N\"]\n",
        tree: &["d 755 0:0 /to", "d 755 5:6 /to/c", "f 644 5:6 /to/c/x x", "d 755 0:0 /to/w"],
        config: &[
            ("/User", "\"5:6\""),
            ("/ExposedPorts", r#"{"180/tcp": {}}"#),
            ("/Volumes", r#"{"/to/v": {}}"#),
            ("/StopSignal", "\"SIGINT\""),
            ("/Labels", r#"{"n1": "to"}"#),
            ("/Env", r#"["PATH=/bin", "E=/t/at"]"#),
            ("/Cmd", r#"["$N"]"#),
        ],
        ..CASE
    },
    Case {
        name: "onbuild_copy",
        files: &[("x", "x")],
        text: "FROM box AS a\nONBUILD COPY x /onbuild/\nFROM a\n",
        tree: &["d 755 0:0 /onbuild", "f 644 0:0 /onbuild/x x"],
        ..CASE
    },
    Case {
        name: "shell_runs_what_it_says",
        text: "SHELL [\"/bin/sh\", \"-ec\"]\nRUN echo $0 $- >/shell; test -f /shell\n",
        tree: &["f 644 0:0 /shell /bin/sh ce|"],
        ..CASE
    },
    Case {
        name: "entrypoint_clears_the_command_below",
        text: "FROM box AS a\nCMD [\"below\"]\nFROM a\nENTRYPOINT [\"x\"]\n",
        config: &[("/Entrypoint", r#"["x"]"#), ("/Cmd", "[]")],
        ..CASE
    },
    Case {
        name: "onbuild_runs_in_the_next_build",
        text: "FROM box AS a\nONBUILD RUN echo $W >/onbuild\nONBUILD ENV X=1\nFROM a\nRUN test $X = 1\n",
        tree: &["f 644 0:0 /onbuild |"],
        config: &[("/OnBuild", "null")],
        ..CASE
    },
    Case {
        name: "volume_keeps_what_is_written_later",
        text: "VOLUME /v\nRUN mkdir -p /v && echo x >/v/x\n",
        tree: &["d 755 0:0 /v", "f 644 0:0 /v/x x|"],
        config: &[("/Volumes", r#"{"/v": {}}"#)],
        ..CASE
    },
    Case { name: "an_unknown_instruction", text: "RUNN x\n", error: &["line 2", "unknown instruction `RUNN`"], ..CASE },
    Case {
        name: "labels_of_the_command_line",
        args: &["--label", "x=y"],
        config: &[("/Labels", r#"{"x": "y"}"#)],
        ..CASE
    },
];
