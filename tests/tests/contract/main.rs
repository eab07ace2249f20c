//! One suite, aimed at every hop: the data-plane services are the same on coordinator,
//! worker and agent, so the same cases must hold on each, on every backend.

mod archive;
mod cases;
mod files;
mod hop;
mod interpreter;
mod isolation;
mod ports;
mod search;
mod secrets;
mod tasks;
mod usage;
mod watch;

use hop::{At, Hop};

/// Makes a test of each case at each hop. `fake` runs the cases that need no real programs.
macro_rules! contract {
    ($backend:ident: $($module:ident::$case:ident),* $(,)?) => {
        mod $backend {
            $(mod $case {
                use super::super::*;
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn coordinator() { run(stringify!($backend), stringify!($case), At::Coordinator).await }
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn worker() { run(stringify!($backend), stringify!($case), At::Worker).await }
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn agent() { run(stringify!($backend), stringify!($case), At::Agent).await }
                async fn run(backend: &str, case: &str, at: At) {
                    if berth_tests::skip::without(backend, &format!("contract {backend} {case} {at:?}")) { return }
                    let hop = Hop::start(backend, at).await;
                    crate::$module::$case(&hop).await;
                    hop.stop().await;
                }
            })*
        }
    };
}

contract!(fake:
    tasks::a_run_streams_started_output_ended,
    tasks::output_resumes_at_any_offset,
    tasks::a_timeout_is_no_exit,
    tasks::cancel_is_final,
    tasks::stdin_is_written_once,
    tasks::a_request_id_starts_one_task,
    tasks::a_start_that_was_sent_to_another_placement_is_refused,
    cases::unknown_ids_are_not_found,
    cases::bad_tasks_are_refused,
    cases::a_ten_mebibyte_message_is_refused_and_the_connection_lives,
    files::what_is_written_is_read,
    files::a_broken_upload_leaves_the_file_as_it_was,
    files::bad_paths_are_refused,
    interpreter::a_fake_sandbox_has_no_interpreter,
    secrets::a_task_is_given_its_secrets,
    secrets::a_secret_that_can_not_be_had_starts_nothing,
    secrets::what_is_asked_for_is_checked,
    ports::each_direction_ends_for_itself,
    ports::megabytes_go_both_ways_as_they_were,
    ports::where_nobody_listens_is_told,
    ports::what_is_no_connection_is_refused,
    ports::so_many_connections_and_no_more,
    usage::tasks_and_files_are_counted,
    watch::a_fake_sandbox_can_not_be_watched,
    search::lines_are_found_with_their_context,
    search::what_is_no_search_is_refused,
    archive::a_directory_goes_out_and_in,
    archive::what_is_no_archive_is_refused,
);

/// What holds of every real backend, handed to a macro.
macro_rules! of_real_backends {
    ($then:ident!($($before:tt)*)) => { $then! { $($before)*
        tasks::a_run_streams_started_output_ended,
        tasks::streams_are_separate_and_binary_safe,
        tasks::output_resumes_at_any_offset,
        tasks::a_shell_line_runs_in_a_shell,
        tasks::a_missing_program_is_127_and_an_unfit_one_126,
        tasks::a_timeout_is_no_exit,
        tasks::too_much_memory_is_told_and_the_session_lives_on,
        tasks::the_output_limit_ends_a_task,
        tasks::cancel_is_final,
        tasks::what_a_task_started_ends_with_it,
        tasks::an_inherited_pipe_holds_nobody_up,
        tasks::a_detached_task_leaves_its_children,
        tasks::stdin_is_written_once,
        tasks::a_terminal_has_its_size,
        tasks::signals_reach_the_task,
        tasks::a_request_id_starts_one_task,
        tasks::a_start_that_was_sent_to_another_placement_is_refused,
        tasks::tasks_are_listed_in_pages,
        tasks::an_unwatched_task_is_cancelled_after_its_grace,
        cases::unknown_ids_are_not_found,
        cases::bad_tasks_are_refused,
        cases::a_ten_mebibyte_message_is_refused_and_the_connection_lives,
        files::what_is_written_is_read,
        files::large_files_go_both_ways,
        files::a_broken_upload_leaves_the_file_as_it_was,
        files::bad_paths_are_refused,
        files::the_kernel_decides_as_the_tasks_user,
        files::a_path_through_a_link_is_refused_where_that_is_asked,
        files::trees_are_listed_moved_and_removed,
        interpreter::a_context_remembers,
        interpreter::an_interrupt_ends_an_execution_and_its_loss_a_context,
        isolation::a_task_has_no_privileges,
        isolation::a_task_sees_only_its_own,
        secrets::a_task_is_given_its_secrets,
        secrets::a_secret_that_can_not_be_had_starts_nothing,
        secrets::what_is_asked_for_is_checked,
        ports::each_direction_ends_for_itself,
        ports::megabytes_go_both_ways_as_they_were,
        ports::where_nobody_listens_is_told,
        ports::what_is_no_connection_is_refused,
        ports::so_many_connections_and_no_more,
        ports::what_breaks_never_looks_like_an_end,
        ports::who_does_not_read_holds_up_nobody,
        ports::the_machines_own_ports_are_not_there,
        usage::tasks_and_files_are_counted,
        usage::cpu_and_memory_are_the_sessions,
        watch::what_happens_in_a_directory_is_told_in_order,
        watch::directories_are_followed_wherever_they_go,
        watch::a_watch_ends_with_its_directory,
        watch::what_is_too_much_is_told,
        watch::so_many_directories_and_streams_and_no_more,
        watch::what_can_not_be_watched_is_refused,
        search::lines_are_found_with_their_context,
        search::what_is_no_search_is_refused,
        search::a_search_goes_through_no_link_and_waits_for_nothing,
        search::a_search_is_bounded_and_ends_with_its_caller,
        archive::a_directory_goes_out_and_in,
        archive::what_is_no_archive_is_refused,
        archive::an_archive_leads_nowhere_else,
        archive::links_and_modes_come_along,
        archive::large_archives_go_both_ways,
    } };
}

of_real_backends!(contract!(native:));
of_real_backends!(contract!(docker:));

// Behind the macro whose list it takes.
mod fleet;
