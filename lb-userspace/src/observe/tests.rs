//! The server as its clients see it: over loopback, with real TLS, and an engine made of a task.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rcgen::CertifiedKey;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use super::*;
use crate::{model::TlsFiles, status::tests::sample};

/// Far beyond what any answer here takes.
const PATIENCE: Duration = Duration::from_secs(20);
const TOKEN: &str = "c2VjcmV0LW9mLWEtc2NyYXBlcg";

/// A directory of its own for one test, removed with it.
struct TestDirectory(PathBuf);

impl TestDirectory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-observe-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An agent's engine that answers, and how often it had to tell everything.
struct Answering {
    state: watch::Receiver<ObservationStatus>,
    told: Arc<AtomicUsize>,
}

/// A free port. Somebody else may take it before the server does; a test that is so unlucky says that it cannot listen.
async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Serves, and waits until it does.
async fn serving(observation: &Observation, waiting: Option<&str>) -> Answering {
    let Observer { mut questions, mut state } = start(observation).unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let (health, count) = (Health { waiting: waiting.map(str::to_owned) }, told.clone());
    tokio::spawn(async move {
        while let Some(question) = questions.recv().await {
            match question {
                Question::Health(reply) => drop(reply.send(health.clone())),
                Question::Status(reply) => {
                    count.fetch_add(1, Ordering::Relaxed);
                    drop(reply.send(sample()));
                }
            }
        }
    });
    wait_served(&mut state).await;
    Answering { state, told }
}

/// The server tells once it listens.
async fn wait_served(state: &mut watch::Receiver<ObservationStatus>) {
    timeout(PATIENCE, state.changed()).await.expect("the server listens").expect("the server lives");
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// One request over any stream.
async fn ask(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> Answer {
    let exchange = async {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // TLS servers may close without saying so.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    };
    let answer = timeout(PATIENCE, exchange).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

fn get(path: &str, authorization: Option<&str>) -> String {
    let authorization = authorization.map_or(String::new(), |value| format!("Authorization: {value}\r\n"));
    format!("GET {path} HTTP/1.1\r\nHost: node\r\n{authorization}\r\n")
}

async fn fetch(address: SocketAddr, path: &str, authorization: Option<&str>) -> Answer {
    ask(TcpStream::connect(address).await.unwrap(), &get(path, authorization)).await
}

async fn at(change: impl FnOnce(&mut Observation)) -> (SocketAddr, Observation) {
    let address = free_address().await;
    let mut observation = Observation { listen: Some(address), ..Observation::default() };
    change(&mut observation);
    (address, observation)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_state_and_health_are_served_read_only() {
    let (address, observation) = at(|_| {}).await;
    let answering = serving(&observation, None).await;
    assert_eq!(answering.state.borrow().error, None);
    let metrics = fetch(address, "/metrics", None).await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", metrics.head);
    assert_eq!(metrics.body, metrics::render(Arc::new(sample()), observation.backend_series));
    let state = fetch(address, "/state", None).await;
    assert_eq!(serde_json::from_str::<Status>(&state.body).unwrap(), sample());
    for (path, body) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let answer = fetch(address, path, None).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, body), "{path}");
    }
    assert_eq!(fetch(address, "/", None).await.status, 200);
    assert_eq!(fetch(address, "/state/../etc", None).await.status, 404);
    for method in ["POST", "PUT", "DELETE"] {
        let stream = TcpStream::connect(address).await.unwrap();
        let answer = ask(stream, &format!("{method} /state HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")).await;
        assert_eq!(answer.status, 405, "{method}");
        assert!(answer.head.contains("allow: get, head"), "{}", answer.head);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_waits_for_something_is_healthy_and_not_ready() {
    let (address, observation) = at(|_| {}).await;
    let _answering = serving(&observation, Some("uplink eth1 does not exist")).await;
    assert_eq!(fetch(address, "/healthz", None).await.status, 200);
    let ready = fetch(address, "/readyz", None).await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("uplink eth1 does not exist"), "{}", ready.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_does_not_answer_is_told_of_within_the_bound() {
    let (address, observation) = at(|_| {}).await;
    // Nobody takes the questions.
    let mut observer = start(&observation).unwrap();
    wait_served(&mut observer.state).await;
    let (health, ready) = tokio::join!(fetch(address, "/healthz", None), fetch(address, "/readyz", None));
    assert_eq!((health.status, ready.status), (503, 503));
    assert!(health.body.contains("did not answer within 5 s"), "{}", health.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_without_a_pause_costs_the_engine_one_status_a_second() {
    let (address, observation) = at(|_| {}).await;
    let answering = serving(&observation, None).await;
    let start = std::time::Instant::now();
    for _ in 0..40 {
        assert_eq!(fetch(address, "/state", None).await.status, 200);
    }
    let bound = 1 + start.elapsed().as_secs() as usize;
    let told = answering.told.load(Ordering::Relaxed);
    assert!((1..=bound).contains(&told), "{told} in {bound} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_token_in_the_file_opens_metrics_and_state() {
    let directory = TestDirectory::new("token");
    let file = directory.write("token", format!("{TOKEN}\n"));
    let (address, observation) = at(|observation| observation.token_file = Some(file.clone())).await;
    let _answering = serving(&observation, Some("uplink eth1 does not exist")).await;
    let right = format!("Bearer {TOKEN}");
    for path in ["/metrics", "/state"] {
        for wrong in
            [None, Some("Bearer"), Some("Bearer "), Some("Basic c2VjcmV0"), Some(TOKEN), Some("Bearer c2VjcmV0")]
        {
            let answer = fetch(address, path, wrong).await;
            assert_eq!(answer.status, 401, "{wrong:?}");
            assert!(answer.head.contains("www-authenticate: bearer"), "{}", answer.head);
            assert!(!answer.body.contains("sluice_") && !answer.body.contains(TOKEN), "{}", answer.body);
        }
        assert_eq!(fetch(address, path, Some(&right)).await.status, 200);
        assert_eq!(fetch(address, path, Some(&format!("bearer  {TOKEN}"))).await.status, 200);
    }
    assert_eq!(fetch(address, "/healthz", None).await.status, 200, "a probe has no token");
    let told = |answer: &Answer| answer.body.contains("eth1");
    assert!(!told(&fetch(address, "/readyz", None).await), "and gets no more than a word");
    assert!(told(&fetch(address, "/readyz", Some(&right)).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_counts_as_soon_as_it_is_in_its_file_and_no_longer() {
    let directory = TestDirectory::new("rotated");
    let file = directory.write("token", TOKEN);
    let (address, observation) = at(|observation| observation.token_file = Some(file.clone())).await;
    let _answering = serving(&observation, None).await;
    let status = async |token: &str| fetch(address, "/state", Some(&format!("Bearer {token}"))).await.status;
    assert_eq!(status(TOKEN).await, 200);
    directory.write("token", "bmV4dA");
    assert_eq!((status(TOKEN).await, status("bmV4dA").await), (401, 200));
    // Neither what is empty nor what is not there opens anything.
    for content in ["", " \n", "two words"] {
        directory.write("token", content);
        assert_eq!((status("").await, status("two words").await, status(TOKEN).await), (503, 503, 503), "{content:?}");
    }
    directory.write("token", "x".repeat(5000));
    assert_eq!(status(&"x".repeat(5000)).await, 503, "longer than a token may be");
    fs::remove_file(&file).unwrap();
    assert_eq!((status("").await, status(TOKEN).await), (503, 503));
    directory.write("token", TOKEN);
    assert_eq!(status(TOKEN).await, 200);
}

/// A certificate for `localhost` and its key, in PEM.
fn certificate() -> (String, String) {
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (cert.pem(), signing_key.serialize_pem())
}

/// What is served to a client that trusts this certificate alone; none where the handshake fails.
async fn fetch_tls(address: SocketAddr, trusted: &str, path: &str, authorization: Option<&str>) -> Option<Answer> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    Some(ask(stream, &get(path, authorization)).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_served_with_the_certificate_in_the_file_and_renewed_with_it() {
    let directory = TestDirectory::new("tls");
    let (first, first_key) = certificate();
    let files =
        TlsFiles { certificate: directory.write("tls.crt", &first), key: directory.write("tls.key", &first_key) };
    let token = directory.write("token", TOKEN);
    let (address, observation) = at(|observation| {
        (observation.tls, observation.token_file) = (Some(files.clone()), Some(token.clone()));
    })
    .await;
    let _answering = serving(&observation, None).await;
    let right = format!("Bearer {TOKEN}");
    let status = async |trusted: &str, authorization: Option<&str>| {
        fetch_tls(address, trusted, "/metrics", authorization).await.map(|answer| answer.status)
    };
    assert_eq!(status(&first, Some(&right)).await, Some(200));
    assert_eq!(status(&first, None).await, Some(401));

    let (second, second_key) = certificate();
    assert_eq!(status(&second, Some(&right)).await, None, "another certificate is not trusted");
    // Written one after the other: in between, and while one is broken, the old pair serves.
    directory.write("tls.crt", &second);
    assert_eq!(status(&first, Some(&right)).await, Some(200));
    directory.write("tls.key", "-----BEGIN PRIVATE KEY-----\nAAAA");
    assert_eq!(status(&first, Some(&right)).await, Some(200));
    directory.write("tls.key", &second_key);
    assert_eq!(status(&second, Some(&right)).await, Some(200));
    assert_eq!(status(&first, Some(&right)).await, None);

    // Who speaks in the clear gets no answer in the clear.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(get("/metrics", Some(&right)).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
}

/// What is told while `observation` cannot be served, for the reason that `trouble` names; then, served after `mend`.
async fn check_mended(observation: &Observation, trouble: &str, mend: impl FnOnce()) {
    let Observer { questions: _questions, mut state } = start(observation).unwrap();
    let told = timeout(PATIENCE, state.wait_for(|state| state.error.is_some())).await.unwrap().unwrap().clone();
    let error = told.error.unwrap();
    assert!(error.contains(trouble), "{error}");
    mend();
    timeout(PATIENCE, state.wait_for(|state| state.error.is_none())).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_served_yet_is_told_and_served_once_it_can_be() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let observation = Observation { listen: Some(taken.local_addr().unwrap()), ..Observation::default() };
    check_mended(&observation, "free it, or set observation.listen", || drop(taken)).await;

    let directory = TestDirectory::new("late");
    let (certificate, key) = certificate();
    let files = TlsFiles { certificate: directory.0.join("tls.crt"), key: directory.write("tls.key", &key) };
    let (_, observation) = at(|observation| observation.tls = Some(files.clone())).await;
    let write = || drop(directory.write("tls.crt", &certificate));
    check_mended(&observation, "tls.crt: cannot be read: No such file", write).await;

    let of = |certificate: &str, key: &str| {
        directory.write("tls.crt", certificate);
        directory.write("tls.key", key);
        credentials::Tls::load(&files).err().expect("refused").to_string()
    };
    assert!(of("", &key).contains("tls.crt: holds no certificate in PEM"));
    assert!(of(&certificate, &certificate).contains("tls.key: holds no private key in PEM"));
    let foreign = of(&certificate, &self::certificate().1);
    assert!(foreign.contains("are no certificate with its key"), "{foreign}");
    assert!(!foreign.contains(&key[40..60]), "a key is no part of a message");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_nothing_or_too_much_is_let_go() {
    let (address, observation) = at(|_| {}).await;
    let _answering = serving(&observation, None).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    let long = format!("GET /metrics HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    let mut talkative = TcpStream::connect(address).await.unwrap();
    let _ = talkative.write_all(long.as_bytes()).await;
    let mut answer = [0; 12];
    if talkative.read_exact(&mut answer).await.is_ok() {
        assert_eq!(&answer, b"HTTP/1.1 431");
    }
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, silent.read_to_end(&mut rest)).await.expect("closed by the server");
}

#[tokio::test]
async fn nothing_is_served_where_nothing_is_wanted() {
    let observation = Observation { listen: None, ..Observation::default() };
    let mut observer = start(&observation).unwrap();
    assert!(observer.questions.recv().await.is_none());
    assert_eq!(*observer.state.borrow(), ObservationStatus::default());
}
