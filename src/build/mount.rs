//! `RUN --mount=…`: from words to what is asked for. Pure.

use super::parse::{Flag, Problem};

/// One mount of a `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// Kept from build to build.
    Cache {
        id: String,
        target: String,
        sharing: Sharing,
        mode: u32,
        owner: (u32, u32),
        from: Option<String>,
        source: String,
        read_only: bool,
    },
    /// Something of the context, a stage or an image.
    Bind {
        from: Option<String>,
        source: String,
        target: String,
        writable: bool,
    },
    /// A secret of the command line, as a file or in the environment.
    Secret {
        id: String,
        target: Option<String>,
        env: Option<String>,
        mode: u32,
        owner: (u32, u32),
        required: bool,
    },
    Tmpfs {
        target: String,
        size: Option<u64>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    Shared,
    /// One build at a time; another one gets a directory of its own.
    Private,
    /// One build at a time; another one waits.
    Locked,
}

/// Reads the value of a `--mount` flag, variables put in already.
pub fn parse(flag: &Flag, text: &str, workdir: &dyn Fn(&str) -> String) -> Result<Mount, Problem> {
    let bad = |what: String| Problem::FlagValue { instruction: "RUN", flag: flag.name.clone(), what };
    let mut fields: Vec<(String, Option<String>)> = Vec::new();
    for field in text.split(',').filter(|field| !field.is_empty()) {
        let field = field.trim_matches('"');
        match field.split_once('=') {
            Some((key, value)) => fields.push((key.to_ascii_lowercase(), Some(value.to_owned()))),
            None => fields.push((field.to_ascii_lowercase(), None)),
        }
    }
    let mut used = vec!["type"];
    let mut take = |names: &[&'static str]| -> Option<String> {
        used.extend_from_slice(names);
        fields
            .iter()
            .rev()
            .find(|(key, _)| names.contains(&key.as_str()))
            .map(|(_, value)| value.clone().unwrap_or("true".into()))
    };
    let number = |name: &str, value: Option<String>, default: u32, radix: u32| match value {
        None => Ok(default),
        Some(value) => u32::from_str_radix(&value, radix).map_err(|_| bad(format!("has a `{name}` that is no number"))),
    };
    let truth = |name: &str, value: Option<String>| match value.as_deref() {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1" | "") => Ok(true),
        Some(other) => Err(bad(format!("has `{name}={other}`, which is neither true nor false"))),
    };
    let kind = take(&["type"]).unwrap_or_else(|| "bind".into());
    let target = take(&["target", "dst", "destination"]);
    let needed =
        |target: Option<String>| target.map(|target| workdir(&target)).ok_or_else(|| bad("needs a `target`".into()));
    let mount = match kind.as_str() {
        "cache" => {
            let target = needed(target)?;
            let sharing = match take(&["sharing"]).as_deref() {
                None | Some("shared") => Sharing::Shared,
                Some("private") => Sharing::Private,
                Some("locked") => Sharing::Locked,
                Some(other) => return Err(bad(format!("has `sharing={other}`: it is shared, private or locked"))),
            };
            Mount::Cache {
                id: take(&["id"]).unwrap_or_else(|| target.clone()),
                sharing,
                mode: number("mode", take(&["mode"]), 0o755, 8)?,
                owner: (number("uid", take(&["uid"]), 0, 10)?, number("gid", take(&["gid"]), 0, 10)?),
                from: take(&["from"]),
                source: take(&["source", "src"]).unwrap_or_else(|| "/".into()),
                read_only: truth("ro", take(&["ro", "readonly"]))?,
                target,
            }
        }
        "bind" => {
            let target = needed(target)?;
            let read_only = take(&["ro", "readonly"]);
            let writable = truth("rw", take(&["rw", "readwrite"]))? || read_only.as_deref() == Some("false");
            Mount::Bind {
                from: take(&["from"]),
                source: take(&["source", "src"]).unwrap_or_else(|| "/".into()),
                target,
                writable,
            }
        }
        "secret" => {
            let env = take(&["env"]);
            let from_target = || target.as_deref().and_then(|path| path.rsplit('/').next()).map(str::to_owned);
            let id = take(&["id", "source", "src"]).or_else(from_target).ok_or_else(|| bad("needs an `id`".into()))?;
            Mount::Secret {
                target: match (target, &env) {
                    (Some(target), _) => Some(workdir(&target)),
                    (None, Some(_)) => None,
                    (None, None) => Some(format!("/run/secrets/{id}")),
                },
                env,
                mode: number("mode", take(&["mode"]), 0o400, 8)?,
                owner: (number("uid", take(&["uid"]), 0, 10)?, number("gid", take(&["gid"]), 0, 10)?),
                required: truth("required", take(&["required"]))?,
                id,
            }
        }
        "tmpfs" => Mount::Tmpfs {
            target: needed(target)?,
            size: take(&["size"])
                .map(|size| {
                    crate::units::parse_memory(&size).map_err(|_| bad(format!("has `size={size}`, which is no size")))
                })
                .transpose()?,
        },
        other => return Err(bad(format!("has the type `{other}`, which gpurun does not know"))),
    };
    match fields.iter().find(|(key, _)| !used.contains(&key.as_str())) {
        Some((key, _)) => Err(bad(format!("has `{key}`, which a {kind} mount does not know"))),
        None => Ok(mount),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Result<Mount, String> {
        let flag = Flag { name: "mount".into(), value: None };
        parse(&flag, text, &|path| if path.starts_with('/') { path.into() } else { format!("/work/{path}") })
            .map_err(|problem| problem.to_string())
    }

    #[test]
    fn types_and_defaults() {
        let Ok(Mount::Cache { id, target, sharing, mode, .. }) =
            mount("type=cache,target=/root/.cache/pip,sharing=locked")
        else {
            panic!("a cache")
        };
        assert_eq!(
            (id.as_str(), target.as_str(), sharing, mode),
            ("/root/.cache/pip", "/root/.cache/pip", Sharing::Locked, 0o755)
        );
        assert_eq!(
            mount("target=x,rw,from=base,source=/y"),
            Ok(Mount::Bind {
                from: Some("base".into()),
                source: "/y".into(),
                target: "/work/x".into(),
                writable: true
            })
        );
        let Ok(Mount::Secret { target, env, mode, .. }) = mount("type=secret,id=key") else { panic!("a secret") };
        assert_eq!((target.as_deref(), env, mode), (Some("/run/secrets/key"), None, 0o400));
        assert!(matches!(mount("type=secret,id=key,env=KEY"), Ok(Mount::Secret { target: None, .. })));
        assert_eq!(mount("type=tmpfs,dst=/t,size=1m"), Ok(Mount::Tmpfs { target: "/t".into(), size: Some(1 << 20) }));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (text, want) in [
            ("type=ssh", "the type `ssh`"),
            ("type=cache", "needs a `target`"),
            ("type=cache,target=/x,sharing=all", "sharing=all"),
            ("type=cache,target=/x,mode=9", "`mode` that is no number"),
            ("type=tmpfs,target=/x,size=much", "size=much"),
            ("type=bind,target=/x,color=red", "`color`, which a bind mount does not know"),
            ("type=secret", "needs an `id`"),
            ("type=bind,target=/x,rw=maybe", "neither true nor false"),
        ] {
            let error = mount(text).expect_err(text);
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
