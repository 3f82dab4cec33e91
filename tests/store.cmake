# The broker's durable side.
steer_test(unit spool steer_proto)
target_sources(test_spool PRIVATE ${CMAKE_SOURCE_DIR}/broker/spool.c)
target_compile_options(test_spool PRIVATE "SHELL:-iquote ${CMAKE_SOURCE_DIR}/broker")
# The disk's answers are replaced where no real disk gives them on demand.
target_link_options(test_spool PRIVATE -Wl,--wrap=write)
steer_test(unit store_dir steer_broker)
steer_test(unit route steer_broker)
target_link_options(test_route PRIVATE -Wl,--wrap=statvfs)
# A disk that loses power; the store's open() is told of another start of the machine.
steer_test(unit power steer_broker)
target_sources(test_power PRIVATE unit/power_vfs.c)
target_link_options(test_power PRIVATE -Wl,--wrap=open)
