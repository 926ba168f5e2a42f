"""The tests of `build` lie in tests/build; pytest leaves out such a name unless told not to."""


def test_the_folder_of_this_name_is_collected(request):
  left_out = request.config.getini('norecursedirs')
  assert 'build' not in left_out, 'set norecursedirs in pyproject.toml to names without "build"'
