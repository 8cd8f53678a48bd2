use clap::CommandFactory;

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

fn parse(line: &str) -> Result<Command, clap::error::ErrorKind> {
    let words = std::iter::once("mlomae").chain(line.split_whitespace());
    Cli::try_parse_from(words).map(|cli| cli.command).map_err(|error| error.kind())
}

#[test]
fn documented_lines_parse() {
    for line in [
        "train",
        "train configs/quickstart.toml --serial --max-outer 3 --quiet --run-dir runs/x",
        "train c.toml --set a.b=c --set d=1 --config-overlay o.toml --config-overlay p.toml",
        "train --resume",
        "train --resume runs/x --set train.outer_iterations=9",
        "train c.toml --resume",
        "train --restart --set run.id=x",
        "check c.toml --log-format json",
        "--log-format json check",
        "verify g.safetensors --json",
        "verify g.safetensors --engine cpu",
        "bench --engine auto",
        "tune c.toml --engine cpu --budget 9",
        "gpu info",
        "gpu info --json",
        "gpu selftest",
        "gpu selftest --json",
        "gpu products --preset small --precision tf32 --peak 8192 --json",
        "eval knn runs/x",
        "eval linear latest --untrained --json",
        "visualize runs/x --out p.png -n 12",
        "data info --format embedded",
        "data convert in out --split test",
        "data synthetic out --num-train 20 --num-test 20",
        "inspect latest --tensors",
        "logs export latest --table metrics --format csv --out m.csv",
        "logs repair latest",
        "logs tail latest -n 5 -f",
        "config show",
        "config schema",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
    }
}

#[test]
fn the_old_name_of_max_outer_is_taken_and_not_shown() {
    for name in ["--max-outer", "--max-steps"] {
        let parsed = parse(&format!("train c.toml {name} 7"));
        assert!(matches!(parsed, Ok(Command::Train(args)) if args.max_outer == Some(7)), "{name}");
    }
    let mut cli = Cli::command();
    let help = cli.find_subcommand_mut("train").expect("a command").render_long_help().to_string();
    assert!(help.contains("--max-outer <N>") && !help.contains("--max-steps"), "{help}");
}

#[test]
fn instruction_sets_are_taken_where_they_are() {
    for isa in Isa::ALL {
        assert_eq!(parse_isa(isa.name()).is_ok(), isa.is_here(), "{}", isa.name());
    }
    assert!(parse_isa("sse").is_err_and(|line| line.starts_with("must be one of portable")));
    for former in FORMER_ISAS {
        assert!(parse_isa(former).is_err_and(|line| line.ends_with("compute.precision=bf16")), "{former}");
    }
}

#[test]
fn wrong_lines_are_refused() {
    use clap::error::ErrorKind::{ArgumentConflict, InvalidSubcommand, InvalidValue, ValueValidation};
    for (line, expected) in [
        ("trian", InvalidSubcommand),
        ("train --resume runs/x --restart", ArgumentConflict),
        ("train --resume runs/x --run-dir runs/y", ArgumentConflict),
        ("train --max-outer 0", ValueValidation),
        ("train --max-steps 0", ValueValidation),
        ("train --max-outer 1 --max-steps 1", ArgumentConflict),
        ("eval svm latest", InvalidValue),
        ("visualize latest -n 0", ValueValidation),
        ("data info x --format jpeg2000", ValueValidation),
        ("logs tail latest --table metric", ValueValidation),
        ("logs export latest --format xlsx", ValueValidation),
        ("check --log-format yaml", InvalidValue),
        ("bench --engine abacus", ValueValidation),
        ("gpu inform", InvalidSubcommand),
        ("gpu products --precision fp8", ValueValidation),
    ] {
        assert_eq!(parse(line).err(), Some(expected), "{line}");
    }
}
