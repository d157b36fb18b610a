use std::os::unix::fs::MetadataExt;

use super::super::auth::Secret;
use super::super::facts::tests::Fake;
use super::*;

fn lab() -> Fake {
    Fake::new(&[
        ("/opt/conda/bin/jupyter-lab", "#!/opt/conda/bin/python3.11\n"),
        ("/opt/conda/lib/python3.11/site-packages/jupyterlab-4.4.1.dist-info/METADATA", ""),
        ("/opt/conda/lib/python3.11/site-packages/jupyter_server-2.16.0.dist-info/METADATA", ""),
        ("/opt/conda/lib/python3.11/site-packages/argon2_cffi-23.1.0.dist-info/METADATA", ""),
        ("/usr/local/bin/start.sh", "#!/bin/bash\ncmd=( \"$@\" )\nexec \"${cmd[@]}\"\n"),
    ])
}

fn classic() -> Fake {
    Fake::new(&[
        ("/usr/local/bin/jupyter-notebook", "#!/usr/bin/python3\n"),
        ("/usr/local/lib/python3.6/dist-packages/notebook-6.0.3.dist-info/METADATA", ""),
    ])
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|&item| item.to_owned()).collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

struct Case {
    files: Fake,
    entrypoint: Vec<String>,
    env: Vec<(String, String)>,
    user: (u32, u32),
    args: Vec<String>,
    auth: Auth,
    limits: Limits,
}

impl Case {
    fn new(files: Fake) -> Self {
        let env = pairs(&[("PATH", "/opt/conda/bin:/usr/local/bin:/usr/bin")]);
        let auth = Auth::Password(Secret::new("geheim"));
        Self { files, entrypoint: vec![], env, user: (0, 0), args: vec![], auth, limits: Limits::default() }
    }

    fn plan(&self) -> Result<Launch, LaunchError> {
        plan(&LaunchRequest {
            image: "img",
            files: &self.files,
            entrypoint: &self.entrypoint,
            env: &self.env,
            user: self.user,
            home: "/root",
            owner: runs_as(&self.entrypoint, &self.files, &self.env, self.user),
            notebook_dir: "/work/share",
            bind: "0.0.0.0".parse().unwrap(),
            port: 8888,
            limits: &self.limits,
            auth: &self.auth,
            tls: None,
            args: &self.args,
        })
    }
}

fn json(launch: &Launch, name: &str) -> Value {
    serde_json::from_str(&launch.files.iter().find(|file| file.name == name).unwrap().content).unwrap()
}

#[test]
fn a_lab_and_a_classic_notebook() {
    let launch = Case::new(lab()).plan().unwrap();
    insta::assert_debug_snapshot!((&launch.argv, &launch.env, &launch.cwd, &launch.files));
    let config = json(&launch, "jupyter_server_config.json");
    let hash = config["PasswordIdentityProvider"]["hashed_password"].as_str().unwrap();
    assert!(hash.starts_with("argon2:"));
    assert_eq!(password::verify(hash, "geheim"), Some(true));
    assert_eq!(config["ServerApp"]["password"], hash);
    assert_eq!(json(&launch, "jupyter_notebook_config.json")["NotebookApp"]["password"], hash);

    let launch = Case::new(classic()).plan().unwrap();
    assert_eq!(
        launch.argv,
        strings(&[
            "/usr/local/bin/jupyter-notebook",
            "--no-browser",
            "--ip=0.0.0.0",
            "--port=8888",
            "--NotebookApp.port_retries=0",
            "--NotebookApp.notebook_dir=/work/share",
            "--allow-root",
            "--NotebookApp.base_url=/",
            "--NotebookApp.certfile=",
            "--NotebookApp.keyfile=",
            "--NotebookApp.client_ca=",
            "--NotebookApp.allow_remote_access=True",
        ])
    );
    let config = json(&launch, "jupyter_notebook_config.json");
    assert!(config["NotebookApp"]["password"].as_str().unwrap().starts_with("sha512:"));
}

#[test]
fn no_token_is_ever_blank_and_no_secret_leaves_the_files() {
    for auth in [
        Auth::Password(Secret::new("geheim")),
        Auth::Hash("sha1:0e112c3ddfce:a68df677475c2b47b6e86d0467eec97ac5f4b85a".into()),
        Auth::Token(Secret::new("feedbeef")),
    ] {
        for files in [lab(), classic()] {
            let mut case = Case::new(files);
            case.auth = auth.clone();
            let launch = case.plan().unwrap();
            let (modern, old) =
                (json(&launch, "jupyter_lab_config.json"), json(&launch, "jupyter_notebook_config.json"));
            for token in [
                &modern["ServerApp"]["token"],
                &modern["IdentityProvider"]["token"],
                &modern["PasswordIdentityProvider"]["token"],
                &old["NotebookApp"]["token"],
            ] {
                let token = token.as_str().unwrap();
                assert!(token.len() >= 8, "{token:?}");
                assert_eq!(token == "feedbeef", matches!(auth, Auth::Token(_)));
            }
            let seen = format!("{launch:?}");
            for secret in ["geheim", "feedbeef", "sha1:", "argon2:$"] {
                assert!(!seen.contains(secret), "{seen}");
            }
        }
    }
}

#[test]
fn an_argon2_hash_needs_an_image_that_can_check_it() {
    let mut case = Case::new(classic());
    case.auth = Auth::Hash(password::hash("geheim", Algorithm::Argon2).unwrap());
    let report = crate::report::Report::from(case.plan().unwrap_err());
    insta::assert_snapshot!(report);
}

#[test]
fn the_login_is_not_an_argument() {
    for argument in [
        "--NotebookApp.token=",
        "--ServerApp.password=sha1:x:y",
        "--IdentityProvider.token=''",
        "--PasswordIdentityProvider.hashed_password=x",
        "--PasswordIdentityProvider.password_required=False",
        "--ServerApp.identity_provider_class=x.Open",
        "--token=abc",
    ] {
        let mut case = Case::new(lab());
        case.args = strings(&["--debug", argument]);
        let error = case.plan().unwrap_err();
        assert!(matches!(&error, LaunchError::SecretArgument { argument: named } if !named.contains('=')), "{error}");
    }
    let mut case = Case::new(lab());
    case.args = strings(&["--debug", "--ServerApp.base_url=/lab1"]);
    let launch = case.plan().unwrap();
    assert_eq!(launch.base_url, "/lab1/");
    assert_eq!(launch.argv[launch.argv.len() - 2..], strings(&["--debug", "--ServerApp.base_url=/lab1"]));
}

#[test]
fn dockers_stacks() {
    let mut case = Case::new(lab());
    case.entrypoint = strings(&["tini", "-g", "--", "start.sh"]);
    case.env.extend(pairs(&[
        ("NB_USER", "jovyan"),
        ("NB_UID", "1000"),
        ("NB_GID", "100"),
        ("JUPYTER_CONFIG_PATH", "/etc/j"),
        ("JUPYTER_NO_CONFIG", "1"),
    ]));
    let launch = case.plan().unwrap();
    assert_eq!(launch.argv[..5], strings(&["tini", "-g", "--", "start.sh", "/opt/conda/bin/jupyter-lab"]));
    assert_eq!(launch.owner, (1000, 100), "start.sh becomes NB_USER");
    for (name, value) in [
        ("TINI_SUBREAPER", "1"),
        ("JUPYTER_CONFIG_PATH", "/run/gpurun/jupyter:/etc/j:/root/.jupyter"),
        ("JUPYTER_NO_CONFIG", ""),
    ] {
        assert_eq!(lookup(&launch.env, name), Some(value));
    }
    case.user = (1000, 100);
    case.entrypoint = vec![];
    let launch = case.plan().unwrap();
    assert!(!launch.argv.contains(&"--allow-root".to_owned()));
    assert_eq!(launch.owner, (1000, 100));
}

#[test]
fn limits_become_variables() {
    let quota = |quota, cpus: Option<&str>| Limits {
        memory: Some(2 << 30),
        cpu_quota_us: Some(quota),
        cpu_period_us: Some(100_000),
        cpuset_cpus: cpus.map(|cpus| cpus.parse().unwrap()),
        ..Limits::default()
    };
    let get = |limits: &Limits, env: &[(&str, &str)], name: &str| {
        lookup(&limit_env(limits, &pairs(env)), name).map(str::to_owned)
    };
    let cases = [
        (150_000, None, "1.5", "2"),
        (50_000, None, "0.5", "1"),
        (800_000, Some("0-1"), "2", "2"),
        (800_000, None, "8", "8"),
    ];
    for (micros, cpus, limit, threads) in cases {
        let limits = quota(micros, cpus);
        assert_eq!(get(&limits, &[], "CPU_LIMIT").as_deref(), Some(limit));
        assert_eq!(get(&limits, &[], "MEM_LIMIT").as_deref(), Some("2147483648"));
        for name in
            ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "PYTHON_CPU_COUNT"]
        {
            assert_eq!(get(&limits, &[], name).as_deref(), Some(threads), "{micros} {name}");
        }
    }
    assert_eq!(get(&quota(800_000, None), &[("OMP_NUM_THREADS", "3")], "OMP_NUM_THREADS"), None);
    let only_set = Limits { cpuset_cpus: Some("0-2".parse().unwrap()), ..Limits::default() };
    assert_eq!(limit_env(&only_set, &[]), pairs(&[("CPU_LIMIT", "3")]));
    assert_eq!(limit_env(&Limits::default(), &[]), []);
}

#[test]
fn files_are_the_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("jupyter");
    let mut case = Case::new(lab());
    let root = nix::unistd::geteuid().is_root();
    case.user = if root { (1234, 2345) } else { (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()) };
    let launch = case.plan().unwrap();
    // A file of an earlier start, readable by all users.
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("jupyter_server_config.json"), "{}").unwrap();
    launch.write_files(&target).unwrap();
    launch.write_files(&target).unwrap();
    for file in &launch.files {
        let path = target.join(file.name);
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o600, case.user.0, case.user.1));
        assert_eq!(std::fs::read_to_string(path).unwrap(), file.content);
    }
    assert_eq!(target.metadata().unwrap().uid(), case.user.0);
}
