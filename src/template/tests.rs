use proptest::prelude::*;
use serde_json::json;

use super::*;

fn data() -> Value {
    let json = json!({
        "Name": "/lab", "Empty": "", "Running": true, "Pid": 42, "Share": 1.5, "None": null,
        "Config": {"Env": ["A=1", "B=2"], "Labels": {"course": "cgroups", "n": "1"}, "Cmd": []},
        "NetworkSettings": {
            "Networks": {"bridge": {"IPAddress": "10.0.0.2"}},
            "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "81/tcp": null},
        },
    });
    let mut value = Value::from_json(&json, &["Labels", "Networks", "Ports"]);
    if let Value::Fields(fields) = &mut value {
        fields.insert("Label".into(), Value::Lookup([("course".to_owned(), "cgroups".to_owned())].into()));
    }
    value
}

fn rendered(template: &str) -> Result<String, String> {
    let template = Template::parse(template).map_err(|error| error.to_string())?;
    template.render(&data()).map_err(|error| error.to_string())
}

/// The results are those of Go 1.21's text/template with docker's functions.
#[test]
fn templates_mean_what_they_mean_in_docker() {
    for (template, want) in [
        ("plain", "plain"),
        ("{{.Name}}", "/lab"),
        ("a {{- .Name -}} b", "a/labb"),
        ("{{/* a comment */}}x{{- /* and */ -}} y", "xy"),
        ("{{json .Config.Env}}", r#"["A=1","B=2"]"#),
        ("{{.Config.Env}}", "[A=1 B=2]"),
        ("{{.Config.Labels}}", "map[course:cgroups n:1]"),
        ("{{.Config.Labels.course}} {{.Config.Labels.none}}", "cgroups <no value>"),
        (r#"{{index .Config.Labels "course"}}|{{index .Config.Labels "none"}}|"#, "cgroups||"),
        (r#"{{.Label "course"}}{{.Label "none"}}"#, "cgroups"),
        (r#"{{index .Config.Env 1}}"#, "B=2"),
        (r#"{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}"#, "8080"),
        ("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "10.0.0.2"),
        (
            "{{range $port, $to := .NetworkSettings.Ports}}{{$port}}->{{with $to}}{{(index . 0).HostPort}}{{else}}-{{end}} {{end}}",
            "80/tcp->8080 81/tcp->- ",
        ),
        ("{{range $i, $e := .Config.Env}}{{if $i}},{{end}}{{$i}}:{{$e}}{{end}}", "0:A=1,1:B=2"),
        ("{{range .Config.Cmd}}x{{else}}none{{end}}", "none"),
        ("{{range .Config.Env}}{{if eq . \"B=2\"}}{{break}}{{end}}{{.}}{{end}}", "A=1"),
        ("{{range .Config.Env}}{{if eq . \"A=1\"}}{{continue}}{{end}}{{.}}{{end}}", "B=2"),
        ("{{if .Running}}up{{else}}down{{end}}", "up"),
        ("{{if .Empty}}a{{else if eq .Pid 42}}b{{else}}c{{end}}", "b"),
        ("{{if and .Running (gt .Pid 41) (not .Empty)}}yes{{end}}", "yes"),
        ("{{or .Empty .Name}} {{and .Running .Pid}}", "/lab 42"),
        (
            "{{eq .Name \"a\" \"/lab\"}} {{ne .Pid 42}} {{lt 1 2}} {{le 2 2}} {{ge 1.5 2.0}}",
            "true false true true false",
        ),
        (r#"{{join .Config.Env ", "}} {{split "a:b" ":"}} {{len .Config.Env}}"#, "A=1, B=2 [a b] 2"),
        (r#"{{lower "AB"}} {{upper "ab"}} {{title "ab cd"}}"#, "ab AB Ab Cd"),
        (r#"{{truncate "abcdef" 3}} [{{pad "x" 1 2}}] [{{pad "" 1 2}}]"#, "abc [ x  ] []"),
        (r#"{{.Name | printf "%s!" | upper}}"#, "/LAB!"),
        (
            r#"{{printf "%-5s|%5d|%05d|%x|%q|%.2f|%v|%t|%%" "ab" 42 -42 255 "q" 1.5 .Config.Env true}}"#,
            "ab   |   42|-0042|ff|\"q\"|1.50|[A=1 B=2]|true|%",
        ),
        (r#"{{printf "%d %s" "x"}}"#, "%!d(string=x) %!s(MISSING)"),
        (r#"{{println "a" 1}}{{print "a" 1 2 "b"}}"#, "a 1\na1 2b"),
        ("{{$x := .Pid}}{{$x}}{{$x = 7}}{{$x}}{{$.Name}}", "427/lab"),
        ("{{with $x := .Name}}{{$x}}{{.}}{{end}}", "/lab/lab"),
        (r#"{{"a\tb\n\u00e4\x41"}}{{`raw\n`}}{{'a'}}"#, "a\tb\näA".to_owned().leak()),
        ("{{.Share}} {{1e21}} {{100000.5}} {{0.00001}}", "1.5 1e+21 100000.5 1e-05"),
        ("{{.None}} {{json .None}}", "<no value> null"),
        (r#"{{slice .Name 1}} {{slice .Name 1 2}} {{slice .Config.Env 1}}"#, "lab l [B=2]"),
        (r#"{{html "<a&b>"}}"#, "&lt;a&amp;b&gt;"),
        ("{{.NetworkSettings.Networks.bridge.IPAddress}}", "10.0.0.2"),
        ("}} {{\"}}\"}}", "}} }}"),
    ] {
        if template.contains("raw") {
            assert_eq!(rendered(template), Ok("a\tb\näAraw\\n97".to_owned()));
            continue;
        }
        assert_eq!(rendered(template), Ok(want.to_owned()), "{template}");
    }
}

#[test]
fn what_is_wrong_with_a_template_is_said() {
    for (template, want) in [
        ("{{.Name", "`{{` without `}}`"),
        ("{{}}", "an action is empty"),
        ("{{if .Name}}x", "a block has no `{{end}}`"),
        ("{{end}}", "`{{end}}` without a block"),
        ("{{else}}", "`{{else}}` without a block"),
        ("{{break}}", "is not in a `{{range}}`"),
        ("{{frobnicate .}}", "there is no function `frobnicate`"),
        ("{{call .}}", "there is no function `call`"),
        ("{{(.Name}}", "`(` without `)`"),
        ("{{.Name)}}", "unexpected `)`"),
        ("{{.Name | }}", "nothing follows `|`"),
        ("{{.Name | 1}}", "only a function can follow `|`"),
        ("{{\"x}}", "`{{` without `}}`"),
        ("{{template \"x\"}}", "named templates"),
        ("{{1x}}", "`1x` is not a number"),
        ("{{.Nme}}", "`.Nme`: there is no field `Nme`"),
        ("{{.Name.X}}", "a text has no field `X`"),
        ("{{.Config.Labels.none.X}}", "there is no value with a field `X`"),
        (r#"{{index .Config.Env 2}}"#, "there is no item 2: the list has 2"),
        (r#"{{(index (index .NetworkSettings.Ports "9/tcp") 0).HostPort}}"#, "there is no item 0"),
        (r#"{{eq .Name 1}}"#, "a text and a number cannot be compared"),
        ("{{len .Pid}}", "a number has no length"),
        ("{{$y}}", "there is no variable `$y`"),
        ("{{range .Pid}}{{end}}", "cannot go through a number"),
        ("{{lower}}", "it takes 1 argument, not 0"),
    ] {
        let error = rendered(template).expect_err(template);
        assert!(error.contains(want), "{template}: {error}");
    }
    let deep = format!("{}{}", "{{if .}}".repeat(5000), "{{end}}".repeat(5000));
    assert!(rendered(&deep).unwrap_err().contains("nested too deeply"));
    assert!(rendered(&format!("{{{{{}}}}}", "(".repeat(100_000))).unwrap_err().contains("nested too deeply"));
}

#[test]
fn a_field_that_is_used_is_found() {
    let uses = |template: &str| Template::parse(template).unwrap().uses("Size");
    assert!(uses("{{.Size}}") && uses("{{if .X}}{{upper (print .Size)}}{{end}}"));
    assert!(!uses("{{json .}}") && !uses("{{.ID}} Size {{\"Size\"}}"));
}

proptest! {
    #[test]
    fn no_template_panics(text in r#"(\{\{|\}\}|[ .$|()a-z"`'0-9,:=-]|if|else|end|range|with|json|index|printf|\.Name|\.Config){0,40}"#) {
        let _ = rendered(&text);
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,60}") {
        let _ = rendered(&text);
    }

    /// What has no action is itself.
    #[test]
    fn text_is_kept(text in "[^{]{0,60}") {
        prop_assert_eq!(rendered(&text), Ok(text));
    }

    #[test]
    fn printf_never_panics(format in "[%a-z0-9.+# -]{0,20}", number in any::<i64>(), text in "\\PC{0,10}") {
        let _ = functions::call("printf", &[Value::Text(format), Value::Int(number.into()), Value::Text(text)]);
    }

    /// Go's quoting and ours agree with JSON about what a text is.
    #[test]
    fn json_round_trip(text in "\\PC{0,40}", number in any::<i64>()) {
        let json = json!({"a": text, "b": [number, null, true]});
        let value = Value::from_json(&json, &[]);
        prop_assert_eq!(value.to_json(), json.clone());
        let printed = functions::call("json", &[value]).unwrap().text();
        prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).unwrap(), json);
    }
}
